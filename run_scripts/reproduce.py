from modeling_jmnat.commands.reproduce import main

if __name__ == "__main__":
    main()
