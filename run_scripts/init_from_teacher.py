from modeling_jmnat.commands.init import main

if __name__ == "__main__":
    main()
