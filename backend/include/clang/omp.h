// For a clang without OpenMP: PyTorch's header for generated code includes this one, and the code, which has
// one thread, uses nothing of it. A clang that has OpenMP finds its own first.
#pragma once
