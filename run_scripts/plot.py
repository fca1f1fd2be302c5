from modeling_jmnat.commands.plot import main

if __name__ == "__main__":
    main()
