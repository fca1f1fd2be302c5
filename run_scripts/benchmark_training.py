from modeling_jmnat.commands.benchmark_training import main

if __name__ == "__main__":
    main()
