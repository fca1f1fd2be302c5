from modeling_jmnat.commands.benchmark_gpu import main

if __name__ == "__main__":
    main()
