"""Language models: from a checkpoint to a program, and from a program to text. See docs/llm.md.

::

    from etcuda import llm

    llm.export("checkpoint", "m.pte")
    for piece in llm.load("m.pte").generate("Once upon a time"):
        print(piece, end="")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from etcuda.llm.export import ExportOptions as ExportOptions
    from etcuda.llm.export import export as export
    from etcuda.llm.language_model import LanguageModel as LanguageModel
    from etcuda.llm.language_model import load as load
    from etcuda.llm.sampling import SamplingOptions as SamplingOptions

_EXPORTS = {
    "ExportOptions": "etcuda.llm.export",
    "LanguageModel": "etcuda.llm.language_model",
    "SamplingOptions": "etcuda.llm.sampling",
    "export": "etcuda.llm.export",
    "load": "etcuda.llm.language_model",
}

__all__ = ["ExportOptions", "LanguageModel", "SamplingOptions", "export", "load"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'etcuda.llm' has no attribute {name!r}; it has {', '.join(__all__)}")
    import importlib

    return getattr(importlib.import_module(_EXPORTS[name]), name)
