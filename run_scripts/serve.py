from modeling_jmnat.commands.serve import main

if __name__ == "__main__":
    main()
