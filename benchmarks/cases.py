"""What the call benchmark runs: registry data only."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from examples.models import TensorOutput
from examples.resnet.model import seeded_resnet18


@dataclasses.dataclass(frozen=True)
class CallCase:
    """One model, called one call at a time.

    Attributes:
        name: the row's name.
        build: makes the model with seeded weights on the CPU, in evaluation mode.
        inputs: example inputs on the CPU.
        tolerance: largest relative error against eager that may be reported as a speed.
        floor_flops: floating-point operations of one call.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    tolerance: float
    floor_flops: float


class OneKernel(nn.Module):
    """Two element-wise operators that fuse into one kernel."""

    def forward(self, x: Tensor) -> Tensor:
        """[n] to [n]."""
        return x * 2 + 1


def _bert_base() -> nn.Module:
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig(attn_implementation="sdpa"), add_pooling_layer=False)
    return TensorOutput(model.half(), "last_hidden_state")


def _seeded(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build().eval().requires_grad_(False)

    return make


def _random(*shape: int, dtype: torch.dtype) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype),)


def _tokens(length: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randint(0, 30522, (1, length), generator=torch.Generator().manual_seed(1)),)


CASES = (
    CallCase("one kernel, 1024 fp32", _seeded(OneKernel), _random(1024, dtype=torch.float32), 1e-6, 2 * 1024),
    CallCase(
        "ResNet-18 fp16, batch 1",
        _seeded(lambda: seeded_resnet18(dtype=torch.float16)),
        _random(1, 3, 224, 224, dtype=torch.float16),
        2e-2,
        2 * 1.814e9,
    ),
    CallCase("BERT-base fp16, batch 1, length 128", _seeded(_bert_base), _tokens(128), 2e-2, 2 * 85.1e6 * 128),
)
