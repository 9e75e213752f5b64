"""Programs in C++ that use the runtime, and a Python driver for one of them."""
