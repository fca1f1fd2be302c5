from modeling_jmnat.commands.translate_corpus import main

if __name__ == "__main__":
    main()
