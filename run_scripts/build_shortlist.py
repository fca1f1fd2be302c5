from modeling_jmnat.commands.build_shortlist import main

if __name__ == "__main__":
    main()
