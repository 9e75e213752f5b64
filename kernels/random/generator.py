"""The state of a generator, and modules that hold it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from etcuda.errors import KernelArgumentError

# The buffer that draws of PyTorch's own operators advance, in every method of a program.
STATE_NAME = "etcuda_random_state"


def make_state(seed: int, offset: int = 0) -> Tensor:
    """State of a generator: [2] int64, the seed and the offset, which is the number of draws so far.

    Raises:
        KernelArgumentError: one of them is not an integer from 0 to 2**63 - 1.
    """
    for name, value in (("seed", seed), ("offset", offset)):
        if not is_seed(value):
            raise KernelArgumentError(f"{name}: expected an integer from 0 to 2**63 - 1, got {value!r}.")
    return torch.tensor([seed, offset], dtype=torch.int64)


def is_seed(value: object) -> bool:
    """Whether a value can be a seed: an integer from 0 to 2**63 - 1."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


class Reseed(nn.Module):
    """A method that sets the generator of the other methods of its program; lower it together with them.

    Its one argument is the new state, [2] int64: the seed and the offset, 0 to start anew. It returns the old state,
    with which a later call goes on where the program was.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer(STATE_NAME, make_state(0))

    def forward(self, state: Tensor) -> Tensor:
        """Sets the state; returns the old one."""
        held = self.get_buffer(STATE_NAME)
        old = held.clone()
        held.copy_(state)
        return old
