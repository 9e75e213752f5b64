"""Which of the sizes 0 and 1, that no export traces, a delegate's graph takes."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import sympy
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export.exported_program import ExportedProgram
from torch.fx import Node
from torch.utils._sympy.numbers import int_oo

from etcuda.partitioner.notes import notes_of
from etcuda.torch_private import example_sizes

log = logging.getLogger(__name__)


def least_sizes(program: ExportedProgram) -> dict[Any, int]:
    """For each symbol in the sizes of the inputs: the least value that was declared and that the graph takes.

    torch.export assumes that every size is 2 or more and lets 0 and 1 pass unchecked. Whether an operator refuses such
    a size, as ``x[0]`` refuses an empty tensor, shows when the graph runs on fake tensors of that size.

    Args:
        program: a delegated program after the passes.
    """
    trial = _Trial(program)
    return {symbol: _least(symbol, program, trial) for symbol in sorted(trial.hints, key=str)}


def _least(symbol: Any, program: ExportedProgram, trial: _Trial) -> int:
    known = program.range_constraints.get(symbol)
    if known is not None and known.lower > 2:
        return int(known.lower)
    declared = _declared(symbol, program)
    if declared >= 2:
        return declared
    if trial.has_own_kernels:
        # Their grids are made for at least one token.
        declared = max(declared, 1)
    refused = {value: trial.refusal(symbol, value) for value in (1, 0) if value >= declared}
    if any(refused.values()) and trial.refusal(symbol, trial.hints[symbol]):
        # Fake tensors cannot tell: the graph does not run on them at all.
        return max(declared, 1)
    for value, reason in refused.items():
        if reason:
            log.info("size %s = %d is refused: %s", symbol, value, reason)
            return value + 1
    return declared


def _declared(symbol: Any, program: ExportedProgram) -> int:
    """The least value that was declared, as far as it is known; 1 where torch.export wrote the 2 of no bound."""
    notes = notes_of(program)
    ranges = notes.ranges if notes is not None else {}
    lower = ranges[symbol].lower if symbol in ranges else 2
    if lower < 2:
        return max(0, int(lower)) if lower != -int_oo else 0
    implied = []
    for expression, bounds in ranges.items():
        factor = expression.coeff(symbol, 1) if expression != symbol else sympy.Integer(0)
        rest = expression - factor * symbol
        if factor != 0 and factor.is_Integer and factor > 0 and rest.is_Integer and bounds.lower != -int_oo:
            implied.append(max(0, -int((rest - bounds.lower) // factor)))
    return max(implied) if implied else 1


def _inputs(program: ExportedProgram) -> list[Node]:
    names = set(program.graph_signature.user_inputs)
    return [node for node in program.graph.nodes if node.op == "placeholder" and node.name in names]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """PyTorch logs the trace of every shape function that raises."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


class _Trial:
    """Runs a delegated program on fake tensors of chosen sizes."""

    def __init__(self, program: ExportedProgram) -> None:
        self._program = program
        self.hints = example_sizes([node.meta["val"] for node in _inputs(program)])
        targets = {node.target for module in _modules(program) for node in module.graph.nodes}
        self.has_own_kernels = any(getattr(target, "namespace", "") == "etcuda" for target in targets)

    def refusal(self, symbol: Any, value: int) -> str:
        """Why the graph does not run where a symbol has a value; empty if it does."""
        assignment = {**self.hints, symbol: value}
        try:
            with _quiet(), FakeTensorMode(allow_non_fake_inputs=True):
                arguments = [
                    _example(node, assignment) for node in self._program.graph.nodes if node.op == "placeholder"
                ]
                interpreter = torch.fx.Interpreter(self._program.graph_module)
                results = interpreter.run(*arguments, enable_io_processing=False)
            return self._wrong_shape(results, assignment)
        # Whatever an operator's shape function raises is its way to refuse.
        except Exception as error:
            return str(error).strip().split("\n")[0] or type(error).__name__

    def _wrong_shape(self, results: Any, assignment: Mapping[Any, int]) -> str:
        for node, result in zip(self._program.graph.output_node().args[0], results, strict=True):
            expected = _concrete(node.meta["val"].shape, assignment)
            if isinstance(result, torch.Tensor) and list(result.shape) != expected:
                return f"{node.name} has shape {list(result.shape)}, expected {expected}"
        return ""


def _modules(program: ExportedProgram) -> list[torch.fx.GraphModule]:
    return [module for module in program.graph_module.modules() if isinstance(module, torch.fx.GraphModule)]


def _concrete(sizes: Any, assignment: Mapping[Any, int]) -> list[int]:
    numbers = {symbol: sympy.Integer(value) for symbol, value in assignment.items()}
    return [int(size.node.expr.xreplace(numbers)) if isinstance(size, torch.SymInt) else int(size) for size in sizes]


def _example(node: Node, assignment: Mapping[Any, int]) -> torch.Tensor:
    value = node.meta["val"]
    sizes = _concrete(value.shape, assignment)
    return torch.empty_strided(sizes, _concrete(value.stride(), assignment), dtype=value.dtype, device=value.device)
