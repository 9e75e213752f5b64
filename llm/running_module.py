"""Which module of a model runs, so that an error can say where it came from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn


@contextlib.contextmanager
def running_modules(model: nn.Module) -> Iterator[list[str]]:
    """The names of the modules that run, the innermost last. After an error it still has those that ran then."""
    trail: list[str] = []

    def begin(name: str) -> Any:
        return lambda module, arguments: trail.append(name)

    def end(module: nn.Module, arguments: Any, output: Any) -> None:
        trail.pop()

    handles = []
    for name, module in model.named_modules():
        handles += [module.register_forward_pre_hook(begin(name)), module.register_forward_hook(end)]
    try:
        yield trail
    finally:
        for handle in handles:
            handle.remove()
