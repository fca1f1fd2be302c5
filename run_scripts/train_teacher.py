from modeling_jmnat.commands.train_teacher import main

if __name__ == "__main__":
    main()
