from modeling_jmnat.commands.publish import main

if __name__ == "__main__":
    main()
