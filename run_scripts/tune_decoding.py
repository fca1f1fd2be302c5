from modeling_jmnat.commands.tune import main

if __name__ == "__main__":
    main()
