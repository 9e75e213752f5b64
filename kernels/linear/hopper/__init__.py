"""The product for Hopper's tensor cores, in CUDA C++."""
