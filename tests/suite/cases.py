"""What the operator tests of ExecuTorch's suite lower, without lowering it: a model and inputs for each call of theirs.

The suite (``executorch.backends.test.suite``, in the wheel) hands every test a runner with one method. ``Recorder`` has
that method and keeps what it is given, so that several tests can share one export.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import inspect
import itertools
import pathlib
import pkgutil
import unittest
import unittest.mock
from collections.abc import Callable, Iterator, Set
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

SUITE = "executorch.backends.test.suite"
# Files of the suite with whole models; the others hold operators.
MODEL_FILES = ("torchaudio", "torchvision")


@dataclasses.dataclass(frozen=True)
class SuiteCase:
    """One model that a test lowers.

    Attributes:
        file: the test's file without ``test_`` and suffix, for example ``add``.
        test: its name, with its parameters other than the dtype in brackets.
        index: which of the test's models it is.
        dtype: of the floating-point tensors, or what the test was given as its dtype.
        model: in evaluation mode.
        inputs: as the model takes them.
        dynamic_shapes: for ``torch.export.export``; None where all sizes are fixed.
    """

    file: str
    test: str
    index: int
    dtype: torch.dtype
    model: nn.Module
    inputs: tuple[Any, ...]
    dynamic_shapes: Any = None

    @property
    def key(self) -> str:
        """``file::test#index``."""
        return f"{self.file}::{self.test}#{self.index}"

    def tensors(self) -> list[Tensor]:
        """The inputs that are tensors."""
        return [leaf for leaf in pytree.tree_leaves(self.inputs) if isinstance(leaf, Tensor)]


class Recorder:
    """The suite's runner, which keeps models instead of lowering them."""

    def __init__(self, quantize: bool = False) -> None:
        self._flow = _Flow(quantize)
        self.calls: list[tuple[nn.Module, tuple[Any, ...], Any]] = []

    def lower_and_run_model(
        self,
        model: nn.Module,
        inputs: tuple[Any, ...],
        generate_random_test_inputs: bool = True,
        dynamic_shapes: object = None,
    ) -> None:
        """Keeps the model and its inputs. The inputs themselves are run, whether or not others could be drawn."""
        self.calls.append((model.eval(), inputs, dynamic_shapes))


@dataclasses.dataclass(frozen=True)
class _Flow:
    quantize: bool


def file_names() -> list[str]:
    """Every file of operator tests, without ``test_``."""
    package = importlib.import_module(f"{SUITE}.operators")
    assert package.__file__ is not None
    folder = str(pathlib.Path(package.__file__).parent)
    return sorted(m.name.removeprefix("test_") for m in pkgutil.iter_modules([folder]) if m.name.startswith("test_"))


def functions_of(file: str) -> list[tuple[str, Callable[..., None], dict[str, Any], bool]]:
    """Name, function, parameters, and whether it takes a dtype, of every test of a file.

    Those of operators that the suite skips, for backends may do as they like with NaNs and infinities, are among them.
    """
    if file in MODEL_FILES:
        module = importlib.import_module(f"{SUITE}.models.test_{file}")
    else:
        with unittest.mock.patch("unittest.skip", _keep):
            module = importlib.import_module(f"{SUITE}.operators.test_{file}")
    found: list[tuple[str, Callable[..., None], dict[str, Any], bool]] = []
    for name, function in inspect.getmembers(module, inspect.isfunction):
        if not name.startswith("test_"):
            continue
        axes: list[list[tuple[str, Any]]] = []
        for mark in getattr(function, "pytestmark", ()):
            if mark.name == "parametrize" and mark.args[0] != "dtype":
                axes.append([(mark.args[0], value) for value in mark.args[1]])
        for chosen in itertools.product(*axes):
            label = f"[{', '.join(str(value) for _, value in chosen)}]" if chosen else ""
            takes_dtype = "dtype" in inspect.signature(function).parameters
            found.append((name + label, function, dict(chosen), takes_dtype))
    return found


def _keep(reason: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Stands where ``unittest.skip`` stands."""
    return lambda function: function


def cases_of(
    file: str, dtype: torch.dtype, skipped: dict[str, str] | None = None, only: Set[str] | None = None
) -> Iterator[SuiteCase]:
    """The cases of one file in ``dtype``.

    A test without a dtype of its own builds fp32; another floating-point dtype comes by converting its model and
    inputs, an integer one leaves the test out. What PyTorch itself cannot run is left out too.

    Args:
        file: as from ``file_names``.
        dtype: of the floating-point tensors.
        skipped: gets the tests that are left out, with the reason.
        only: names of the tests that are wanted; all where it is None.
    """
    skipped = {} if skipped is None else skipped
    for name, function, parameters, takes_dtype in functions_of(file):
        if only is not None and name not in only:
            continue
        if not takes_dtype and not dtype.is_floating_point:
            skipped[f"{file}::{name}"] = "the test has no dtype of its own"
            continue
        recorder = Recorder()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(f"{file}::{name}"))
            try:
                function(recorder, **parameters, **({"dtype": dtype} if takes_dtype else {}))
            except unittest.SkipTest as skip:
                skipped[f"{file}::{name}"] = f"the suite skips it: {skip}"
                continue
            except (RuntimeError, TypeError, NotImplementedError) as error:
                skipped[f"{file}::{name}"] = f"PyTorch: {first_line(error)}"
                continue
        for index, (model, inputs, shapes) in enumerate(recorder.calls):
            case = SuiteCase(file, name, index, dtype, *converted(model, inputs, dtype), shapes)
            reason, writes = tried_in_pytorch(case)
            if reason:
                skipped[case.key] = f"PyTorch: {reason}"
            else:
                yield dataclasses.replace(case, model=Own(model).eval()) if writes else case


def converted(model: nn.Module, inputs: tuple[Any, ...], dtype: torch.dtype) -> tuple[nn.Module, tuple[Any, ...]]:
    """Model and inputs with every floating-point tensor in ``dtype``, where that is a floating-point one."""
    if not dtype.is_floating_point:
        return model, inputs
    cast = pytree.tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, inputs)
    return model.to(dtype), cast


def tried_in_pytorch(case: SuiteCase) -> tuple[str, bool]:
    """Why PyTorch cannot run the case, empty where it can; and whether the case writes to its inputs."""
    inputs = pytree.tree_map_only(Tensor, torch.clone, case.inputs)
    try:
        with torch.no_grad():
            case.model(*inputs)
    except (RuntimeError, TypeError, NotImplementedError, IndexError) as error:
        return first_line(error), False
    return "", any(leaf._version for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor))


class Own(nn.Module):
    """A model that gets copies of its inputs: ExecuTorch returns inputs that are written to before the outputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Any) -> Any:
        """As the model."""
        return self.model(*pytree.tree_map_only(Tensor, torch.clone, inputs))


class Negated(nn.Module):
    """A model with every result negated; booleans and unsigned numbers have their bits turned."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Any) -> Any:
        """As the model."""
        return pytree.tree_map_only(Tensor, _negative, self.model(*inputs))


def _negative(tensor: Tensor) -> Tensor:
    return ~tensor if tensor.dtype in (torch.bool, torch.uint8) else -tensor


def negated(case: SuiteCase) -> SuiteCase:
    """The case with arithmetic at its end, so that what only moves data is worth a call of the delegate."""
    return dataclasses.replace(case, model=Negated(case.model).eval())


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def seed_of(name: str) -> int:
    """A seed that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
