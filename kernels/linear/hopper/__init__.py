"""The int4 product on Hopper's tensor cores, in CUDA C++. README.md says how it works."""
