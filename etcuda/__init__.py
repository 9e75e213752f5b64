"""etcuda: a CUDA backend for ExecuTorch.

``CudaPartitioner`` is all that an export needs; ``import etcuda.runtime`` registers the delegate that runs the result.
Names are resolved on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from etcuda.backend.options import CompileOptions as CompileOptions
    from etcuda.backend.save import save_program as save_program
    from etcuda.backend.target import CudaTarget as CudaTarget
    from etcuda.errors import EtcudaError as EtcudaError
    from etcuda.partitioner.partitioner import CudaPartitioner as CudaPartitioner
    from etcuda.partitioner.report import partition_report as partition_report

__version__ = "0.1.0"

# In a checkout the subpackages lie beside this folder, not in it; an installed package has them inside.
_checkout = pathlib.Path(__file__).resolve().parent.parent
if (_checkout / "backend" / "schema" / "delegate.fbs").is_file():
    __path__.append(str(_checkout))

_EXPORTS = {
    "CompileOptions": "etcuda.backend.options",
    "CudaPartitioner": "etcuda.partitioner.partitioner",
    "CudaTarget": "etcuda.backend.target",
    "EtcudaError": "etcuda.errors",
    "partition_report": "etcuda.partitioner.report",
    "save_program": "etcuda.backend.save",
}

__all__ = ["CompileOptions", "CudaPartitioner", "CudaTarget", "EtcudaError", "partition_report", "save_program"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'etcuda' has no attribute {name!r}; it has {', '.join(__all__)}")
    import importlib

    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
