"""How a model of the zoo becomes a case of the registry: one method, ``forward``, and one call of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from examples.models import Call, ModelCase

LENGTH, VOCAB = 24, 512


class Output(nn.Module):
    """A model of which one tensor of the result is wanted.

    Args:
        model: takes keyword arguments.
        names: of the arguments, in the order in which ``forward`` takes them.
        output: key or index of the tensor.
    """

    def __init__(self, model: nn.Module, names: tuple[str, ...], output: str | int = 0) -> None:
        super().__init__()
        self.model = model
        self.names = names
        self.output = output

    def forward(self, *inputs: Tensor) -> Tensor:
        """One tensor per name to the chosen one."""
        out: Tensor = self.model(**dict(zip(self.names, inputs, strict=True)))[self.output]
        return out


@dataclasses.dataclass(frozen=True)
class Entry:
    """A model of the zoo.

    Attributes:
        family: its name.
        kind: what sort of model it is, for the table.
        build: makes it in fp32, with seeded weights.
        inputs: one call's inputs, in fp32 where they are numbers.
        dtypes: in which it is a case.
        export: from the model and inputs to a program; ``torch.export.export`` where it is None.
    """

    family: str
    kind: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)
    export: Callable[[nn.Module, tuple[Tensor, ...]], ExportedProgram] | None = None

    def cases(self) -> list[ModelCase]:
        """One per dtype."""
        return [self._case(dtype) for dtype in self.dtypes]

    def _case(self, dtype: torch.dtype) -> ModelCase:
        def inputs(dtype: torch.dtype) -> tuple[Tensor, ...]:
            return tuple(t.to(dtype) if t.is_floating_point() else t for t in self.inputs())

        def export(model: nn.Module) -> dict[str, ExportedProgram]:
            make = self.export or torch.export.export
            return {"forward": make(model, inputs(dtype))}

        return ModelCase(
            self.family,
            dtype,
            lambda dtype: self.build().to(dtype),
            export,
            lambda dtype: [Call("forward", inputs(dtype))],
        )


def tokens(length: int = LENGTH, seed: int = 0, vocab: int = VOCAB) -> Tensor:
    """[1, length] int64, none of them 0 or 1, which mean padding to some models."""
    return torch.randint(3, vocab, (1, length), generator=torch.Generator().manual_seed(seed))


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in fp32."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small(kind: Any, **changes: Any) -> Any:
    """A configuration of transformers with two layers of 64 channels, where it has these names, and ``changes``.

    Args:
        kind: the class of the configuration.
        changes: its arguments.
    """
    return kind(
        **{
            "vocab_size": VOCAB,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 128,
            "pad_token_id": 0,
            **changes,
        }
    )
