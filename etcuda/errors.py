"""The exceptions of etcuda: one small hierarchy, each message says what, expected, got and what to do."""

from __future__ import annotations


class EtcudaError(Exception):
    """Base of everything that etcuda raises on purpose."""


class OptionError(EtcudaError, ValueError):
    """An option is unknown or its value is not one that the option takes."""


class TargetError(EtcudaError, ValueError):
    """A target string names no GPU architecture that can be compiled for."""


class UnsupportedGraphError(EtcudaError):
    """The delegated graph holds something that the backend cannot compile."""


class StateError(EtcudaError):
    """Methods of one program name a buffer that they cannot share."""


class PassError(EtcudaError):
    """A graph pass failed, or left the graph invalid."""


class FoldError(PassError):
    """Repetitions that were taken out of a program for some stages cannot be put back."""


class CompileError(EtcudaError):
    """Code generation, the kernel compiler or the C++ compiler failed."""


class BlobError(EtcudaError, ValueError):
    """Bytes that should be a delegate blob are not one, or are damaged."""


class RuntimeUnavailableError(EtcudaError, RuntimeError):
    """The native runtime library, or something it needs, is missing."""


class KernelArgumentError(EtcudaError, ValueError):
    """A kernel was called with arguments that it does not take."""


class WeightFormatError(EtcudaError, ValueError):
    """A weight cannot be stored in a quantised format, or stored tensors do not fit together."""


class GgufError(EtcudaError, ValueError):
    """A GGUF file is damaged, or holds a tensor that cannot be read or placed."""


class SessionError(EtcudaError, RuntimeError):
    """A session cannot do what it was asked to, or a saved one is damaged or does not fit."""


class SaveError(EtcudaError, OSError):
    """A file, a program or a measured table, cannot be written to disk."""


class CheckpointError(EtcudaError, ValueError):
    """A checkpoint cannot be read, or its model cannot be made a program."""


class GenerationError(EtcudaError, ValueError):
    """A program cannot generate what it was asked for."""
