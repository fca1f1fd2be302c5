from modeling_jmnat.commands.benchmark import main

if __name__ == "__main__":
    main()
