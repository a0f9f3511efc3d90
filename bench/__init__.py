"""Reports about the kernels, and suites that measure them.

`python -m bench COMMAND` from the top of the repository:

    resources   registers and memory of every CUDA kernel, held against the committed table
    sass        instructions per element in the sweeps of the row kernels
    readme      the tables of README.md and docs/, from the files they are made of

bench_*.py are suites of pytest-benchmark, gpu.sh is everything to do where a GPU is at hand.
"""
