"""int8 weights: layout, tensor subclass, kernels. See README.md."""
