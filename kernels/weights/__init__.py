"""Quantised weights as users handle them: tensor subclasses, quantisation, conversion, GGUF and safetensors files.

Nothing is imported here: torchao, which the subclasses are built on, loads when the first of them is asked for.
"""
