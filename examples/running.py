"""Runs a ``.pte`` file in the stock ExecuTorch runtime for Python."""

from __future__ import annotations

import pathlib
import time

import torch
from torch import Tensor

from examples.models import Call


class Session:
    """One loaded program. Its state lives as long as it does.

    Args:
        path: the ``.pte`` file.
        data_path: the ``.ptd`` file with its weights, where they are kept apart.
    """

    def __init__(self, path: pathlib.Path, data_path: pathlib.Path | None = None) -> None:
        from executorch.runtime import Runtime

        import etcuda.runtime  # noqa: F401  (registers the delegate)

        self._program = Runtime.get().load_program(path, data_path=data_path)
        self._methods = {name: self._program.load_method(name) for name in sorted(self._program.method_names)}
        self.seconds: list[float] = []

    def call(self, method: str, *inputs: Tensor) -> Tensor:
        """First output of one execution; its wall time goes to ``seconds``."""
        if method not in self._methods:
            raise KeyError(f"the program has no method {method!r}; it has {', '.join(self._methods)}.")
        loaded = self._methods[method]
        start = time.perf_counter()
        outputs = loaded.execute(inputs)
        self.seconds.append(time.perf_counter() - start)
        out: Tensor = outputs[0]
        return out.clone()

    def run(self, calls: list[Call]) -> list[Tensor]:
        """The outputs of a whole session."""
        return [self.call(call.method, *call.inputs) for call in calls]


def gpu_arch() -> str | None:
    """``sm_90`` or the like of the local GPU; None without one."""
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"
