from modeling_jmnat.commands.finetune_example import main

if __name__ == "__main__":
    main()
