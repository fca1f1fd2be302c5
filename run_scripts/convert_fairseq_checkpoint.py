from modeling_jmnat.commands.convert_fairseq import main

if __name__ == "__main__":
    main()
