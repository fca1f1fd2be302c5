from modeling_jmnat.commands.convert_teacher import main

if __name__ == "__main__":
    main()
