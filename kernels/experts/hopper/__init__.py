"""Products of experts on Hopper's tensor cores, in CUDA C++. See ../README.md."""
