from modeling_jmnat.commands.average_checkpoints import main

if __name__ == "__main__":
    main()
