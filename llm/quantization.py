"""Which weights of a model are quantised, and to what."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from etcuda.errors import CheckpointError, EtcudaError, WeightFormatError
from etcuda.kernels.weights.config import CoalescedConfig, Int4CoalescedConfig, Int8CoalescedConfig, quantize_tensor
from etcuda.kernels.weights.tensor import CoalescedTensor
from etcuda.llm import experts

FORMATS = ("none", "int4", "int8")


@dataclasses.dataclass(frozen=True)
class QuantOptions:
    """How weights are quantised.

    Attributes:
        linear: of linear layers, the head and mixtures of experts among them: ``"none"``, ``"int4"`` or ``"int8"``.
            Those of one row stay as they are.
        rules: pairs of a module's name, with ``*`` and ``?``, and a format; for linear layers, mixtures of experts and
            embeddings. The first that matches counts, before ``linear``. A head that shares the embedding's weight has
            one format with it, the head's.
        group_size: weights of a row that share a scale: 32, 64, 128 or 256.
        activation_dtype: ``"int8"``: activations may be quantised while the program runs; ``"exact"``: they are not.

    Raises:
        CheckpointError: a value is not one of these.
    """

    linear: str = "none"
    rules: tuple[tuple[str, str], ...] = ()
    group_size: int = 32
    activation_dtype: str = "int8"

    def __post_init__(self) -> None:
        for name, value in (("quant", self.linear), *((f"quant rule {pattern}", one) for pattern, one in self.rules)):
            if value not in FORMATS:
                raise CheckpointError(f"{name}: expected {', '.join(FORMATS)}, got {value!r}.")
        for name in ("int4", "int8"):
            try:
                self.config(name)
            except EtcudaError as error:
                raise CheckpointError(f"quant: {error}") from error

    def config(self, name: str) -> CoalescedConfig:
        """The configuration of a format, ``"int4"`` or ``"int8"``."""
        kind = Int4CoalescedConfig if name == "int4" else Int8CoalescedConfig
        return kind(group_size=self.group_size, activation_dtype=self.activation_dtype)


class Plan:
    """Formats of a model's weights.

    Args:
        model: of transformers, on the meta device.
        options: what was asked for.

    Raises:
        CheckpointError: a rule matches no module, nothing is left to quantise, or weights do not fit their format;
            all are named.
    """

    def __init__(self, model: Any, options: QuantOptions) -> None:
        self._options = options
        tied: Mapping[str, str] = model.get_expanded_tied_weights_keys(all_submodels=True)
        chosen: dict[str, str] = {}
        used: set[str] = set()
        problems: list[str] = []
        for name, module in model.named_modules():
            if experts.is_mixture(module):
                chosen |= self._experts(name, module, used, problems)
            if not isinstance(module, nn.Linear | nn.Embedding):
                continue
            wanted = self._format(name, module, used)
            weight = f"{name}.weight"
            # A head's choice comes first for the weight that it shares with the embedding.
            if wanted is not None and (isinstance(module, nn.Linear) or tied.get(weight, weight) not in chosen):
                chosen[tied.get(weight, weight)] = wanted
        self._chosen = {name: wanted for name, wanted in chosen.items() if wanted != "none"}
        for pattern, _ in options.rules:
            if pattern not in used:
                problems.append(
                    f"rule {pattern!r}: expected the name of a linear layer or an embedding, got none of it"
                )
        for name, wanted in self._chosen.items():
            shape = model.get_parameter(name).shape
            try:
                options.config(wanted).format(shape[-1]).check_size(shape, name)
            except WeightFormatError as error:
                problems.append(str(error))
        transposed = [name for name, module in model.named_modules() if type(module).__name__ == "Conv1D"]
        if options.linear != "none" and transposed:
            problems.append(
                f"{transposed[0]} and {len(transposed) - 1} more: expected linear layers, got those of GPT-2, whose "
                "weights are transposed and stay as they are; quantise by rules alone"
            )
        if options.linear != "none" and not self._chosen:
            problems.append(f"expected linear layers to quantise, got none in a {type(model).__name__}")
        if problems:
            raise CheckpointError("quant: " + "\n  ".join(problems))

    def _format(self, name: str, module: nn.Module, used: set[str]) -> str | None:
        """The format of a module's weight; ``None`` where nothing was said."""
        found = self._rule(name, used)
        # A layer of one row, as a shared expert's gate, has few bytes, and joins others in the dtype that they have.
        if found is None and isinstance(module, nn.Linear) and module.out_features > 1:
            return self._options.linear
        return found

    def _rule(self, name: str, used: set[str]) -> str | None:
        """The format that the rules say of a module; ``None`` where none does."""
        found = None
        for pattern, wanted in self._options.rules:
            if fnmatch.fnmatchcase(name, pattern):
                used.add(pattern)
                found = wanted if found is None else found
        return found

    def _experts(self, name: str, module: nn.Module, used: set[str], problems: list[str]) -> dict[str, str]:
        """Formats of a mixture's weights by name. Experts that no kernel takes stay as they are, unless a rule has
        them."""
        rule = self._rule(name, used)
        reason = experts.refuse(module)
        if reason is None:
            return {f"{name}.{weight}": rule or self._options.linear for weight in experts.WEIGHTS}
        if rule not in (None, "none"):
            problems.append(f"{name}: expected experts that can be quantised, but {reason}; leave them out")
        return {}

    def apply(self, weight: Tensor, name: str) -> Tensor:
        """A weight in the format that it was given; unchanged if it has none.

        Raises:
            WeightFormatError: it cannot be quantised so; the message has its name.
        """
        wanted = self._chosen.get(name)
        return weight if wanted is None else quantize_tensor(weight, self._options.config(wanted), name)

    @property
    def formats(self) -> Mapping[str, str]:
        """Formats of the weights that are quantised, by name."""
        return self._chosen


def stored_bytes(weight: Tensor) -> int:
    """Bytes of a weight as it is stored."""
    if isinstance(weight, CoalescedTensor):
        return sum(component.nbytes for component in weight.components.values())
    return weight.nbytes


def decode_bytes(model: Any) -> int:
    """Bytes of weights that a decoded token reads: all but those of embeddings that are no head too, and of experts
    those of as many as a token is given to."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    used = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    shares = shares_of_experts(model)
    return sum(
        int(stored_bytes(weight) * shares.get(id(weight), 1.0))
        for weight in model.parameters()
        if id(weight) not in embeddings - used
    )


def shares_of_experts(model: Any) -> dict[int, float]:
    """For weights that are stacked by expert: how many of all experts a token is given to."""
    found: dict[int, float] = {}
    for module in model.modules():
        count = getattr(module, "num_experts", None)
        if isinstance(count, int) and hasattr(module, "gate_up_proj"):
            share = experts.top_k(model.config) / count
            found |= {id(weight): share for weight in module.parameters(recurse=False)}
    return found
