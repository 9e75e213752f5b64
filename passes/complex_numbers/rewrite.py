"""Rewrites a program in which complex numbers appear between real inputs and real outputs."""

from __future__ import annotations

import functools
import logging
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.export import default_decompositions
from torch.export.exported_program import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, OutputKind, TensorArgument
from torch.fx import Node

from etcuda.options import BackendConfig
from etcuda.passes.base import graph_modules
from etcuda.passes.complex_numbers import fft_ops
from etcuda.passes.complex_numbers.fourier import Transformer
from etcuda.passes.complex_numbers.handlers import Handler, handlers
from etcuda.passes.complex_numbers.pair import REAL_OF, Pair, settle
from etcuda.passes.graph.copy_graph import copy_graph
from etcuda.passes.graph.edge_ops import ASSERTIONS
from etcuda.passes.graph.inline_function import trace_before
from etcuda.torch_private import fake_mode_of

log = logging.getLogger(__name__)

aten = torch.ops.aten

_ROUNDS = 8  # a decomposition may yield what is decomposed in turn


class ComplexError(Exception):
    """What stands against real numbers in the place of a program's complex ones."""


def has_complex(program: ExportedProgram) -> bool:
    """Whether any value of a program is complex."""
    return any(_is_complex(node) for module in graph_modules(program) for node in module.graph.nodes)


def complex_to_pairs(program: ExportedProgram, config: BackendConfig) -> ExportedProgram:
    """A program that computes the same with real numbers.

    Before: ``view_as_real(mul(view_as_complex(x), freqs_cis))``.
    After: ``stack([x[..., 0] * freqs_cis[..., 0] - x[..., 1] * freqs_cis[..., 1], ...], -1)``. A complex parameter,
    buffer or constant becomes a real one of one dimension more, of 2.

    Args:
        program: from ``torch.export.export``; not changed.
        config: target and options.

    Raises:
        ComplexError: the program has complex inputs or outputs, or an operator that is not known.
    """
    _refuse(program)
    made = _decomposed(program)
    rewriting = _Rewriting(made, config)
    rewriting.run()
    return made


def _is_complex(node: Node) -> bool:
    value = node.meta.get("val")
    values = value if isinstance(value, list | tuple) else [value]
    return any(isinstance(each, Tensor) and each.dtype.is_complex for each in values)


def _touches(node: Node) -> bool:
    if node.op != "call_function":
        return False
    return _is_complex(node) or any(_is_complex(source) for source in node.all_input_nodes)


def _refuse(program: ExportedProgram) -> None:
    signature = program.graph_signature
    inputs = set(signature.user_inputs)
    named = [node for node in program.graph.nodes if node.op == "placeholder" and _is_complex(node)]
    given = [node.name for node in named if node.name in inputs]
    if given:
        raise ComplexError(f"input {given[0]} is complex; take torch.view_as_real of it and view_as_complex inside")
    state = {spec.arg.name for spec in signature.output_specs if spec.kind is OutputKind.BUFFER_MUTATION}
    outputs = [node for node in program.graph.output_node().all_input_nodes if _is_complex(node)]
    returned = [node.name for node in outputs if node.name not in state]
    if returned:
        raise ComplexError(f"output {returned[0]} is complex; return torch.view_as_real of it")
    inner = [module for module in graph_modules(program) if module is not program.graph_module]
    if any(_is_complex(node) for module in inner for node in module.graph.nodes):
        raise ComplexError("complex numbers inside of control flow")


def _decomposed(program: ExportedProgram) -> ExportedProgram:
    """A functional copy, in which every complex call is one that has a handler, as far as decompositions know."""
    program = program.run_decompositions({})
    known, table = handlers().keys() | _FFT.keys(), default_decompositions()
    for _ in range(_ROUNDS):
        wanted = {node.target for node in program.graph.nodes if _touches(node)} - known
        chosen = {op: table[op] for op in wanted if op in table}
        if not chosen:
            break
        program = program.run_decompositions(chosen)
    return copy_graph(program)


_FFT: dict[object, Callable[..., Any]] = {
    aten._fft_r2c.default: fft_ops.fft_r2c,
    aten._fft_c2c.default: fft_ops.fft_c2c,
    aten._fft_c2r.default: fft_ops.fft_c2r,
}


class _ProgramTables:
    """Constants of a program, added to it where something reads them."""

    def __init__(self, program: ExportedProgram) -> None:
        self._program = program
        self._mode: Any = fake_mode_of([node.meta.get("val") for node in program.graph.nodes])
        self._made: dict[str, Tensor] = {}
        self._fake: dict[str, Tensor] = {}
        self._nodes: dict[str, Node] = {}

    def get(self, name: str, dtype: torch.dtype, make: Callable[[], Tensor]) -> Any:
        """See ``Tables``."""
        key = f"etcuda_{name}_{str(dtype).removeprefix('torch.')}"
        if key not in self._fake:
            with torch.utils._python_dispatch._disable_current_modes():
                self._made[key] = make().to(dtype)
            self._fake[key] = self._mode.from_tensor(self._made[key], static_shapes=True)
        return self._fake[key]

    def node_of(self, value: Tensor) -> Node:
        """The placeholder of a constant that ``get`` returned."""
        key = next(key for key, fake in self._fake.items() if fake is value)
        if key not in self._nodes:
            self._nodes[key] = _add_constant(self._program, key, self._made[key], value)
        return self._nodes[key]


def _add_constant(program: ExportedProgram, name: str, value: Tensor, fake: Tensor) -> Node:
    """In front of the inputs of a call."""
    signature = program.graph_signature
    index = next(
        (i for i, spec in enumerate(signature.input_specs) if spec.kind is InputKind.USER_INPUT),
        len(signature.input_specs),
    )
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    with program.graph.inserting_before(placeholders[index]):
        node: Node = program.graph.placeholder(name)
    node.meta = {"val": fake}
    spec = InputSpec(kind=InputKind.CONSTANT_TENSOR, arg=TensorArgument(node.name), target=name)
    signature.input_specs = [*signature.input_specs[:index], spec, *signature.input_specs[index:]]
    program.constants[name] = value
    return node


class _Rewriting:
    """One program's."""

    def __init__(self, program: ExportedProgram, config: BackendConfig) -> None:
        self._program = program
        self._tables = _ProgramTables(program)
        self._by_products = config.is_host or not config.options.allow_tf32
        self._on_host = config.is_host
        self._pairs: dict[Node, Any] = {}
        self._handlers = handlers()

    def run(self) -> None:
        graph = self._program.graph
        for node in list(graph.nodes):
            if node.op == "placeholder" and _is_complex(node):
                self._take_state(node)
            elif _touches(node) and node.target in ASSERTIONS:
                graph.erase_node(node)
            elif _touches(node) or node.target is aten.unfold_backward.default:
                self._rewrite(node)
        self._put_state()
        for node in reversed(list(graph.nodes)):
            if node in self._pairs and not node.users and node.op != "placeholder":
                graph.erase_node(node)
        graph.lint()
        self._program.graph_module.recompile()

    def _take_state(self, node: Node) -> None:
        """A complex weight becomes a real one."""
        signature = self._program.graph_signature
        spec = next(spec for spec in signature.input_specs if spec.arg.name == node.name)
        for table in (self._program.state_dict, self._program.constants):
            value = table.get(spec.target)
            if isinstance(value, Tensor) and value.dtype.is_complex:
                real = torch.view_as_real(value.detach().resolve_conj()).contiguous()
                table[spec.target] = torch.nn.Parameter(real, False) if isinstance(value, torch.nn.Parameter) else real
        before = next(each for each in self._program.graph.nodes if each.op != "placeholder")
        old = node.meta["val"]
        mode: Any = fake_mode_of([old])
        with mode:
            node.meta["val"] = torch.empty((*old.shape, 2), dtype=REAL_OF[old.dtype], device=old.device)
        parts = trace_before(before, lambda x: (x.select(-1, 0), x.select(-1, 1)), [node], self._constant)
        self._pairs[node] = Pair(*parts)

    def _put_state(self) -> None:
        output = self._program.graph.output_node()
        for source in output.all_input_nodes:
            if source in self._pairs:
                parts = self._pairs[source]
                stacked = trace_before(output, lambda re, im: torch.stack([re, im], -1), list(parts), self._constant)
                output.replace_input_with(source, stacked)
                for spec in self._program.graph_signature.output_specs:
                    if spec.arg.name == source.name:
                        spec.arg = TensorArgument(stacked.name)

    def _rewrite(self, node: Node) -> None:
        if node.target is operator.getitem:
            source, index = node.args
            assert isinstance(source, Node)
            self._pairs[node] = self._pairs[source][index]
            return
        handler = self._handler(node)
        inputs: list[Node] = []
        for source in node.all_input_nodes:
            pairs = self._pairs.get(source, source)
            for part in pairs if isinstance(pairs, Pair) else [pairs]:
                inputs += [] if part in inputs else [part]

        def call(*values: Any) -> Any:
            given = dict(zip(inputs, values, strict=True))
            args, kwargs = _replace((node.args, node.kwargs), lambda source: self._value(source, given))
            return _settled(handler(*args, **kwargs), node.meta["val"])

        try:
            found = trace_before(node, call, inputs, self._constant)
        except NotImplementedError as error:
            raise ComplexError(f"{node.target}: {error}") from error
        if isinstance(found, Node):
            node.replace_all_uses_with(found)
            self._program.graph.erase_node(node)
            _rename_outputs(self._program, node, found)
        else:
            self._pairs[node] = _as_pairs(found, node.meta["val"])

    def _value(self, source: Node, given: dict[Node, Any]) -> Any:
        pairs = self._pairs.get(source)
        return given[source] if pairs is None else Pair(*(given[part] for part in pairs))

    def _handler(self, node: Node) -> Handler:
        if node.target is aten.unfold_backward.default:
            return fft_ops.overlap_add
        if node.target in _FFT:
            dtype = node.args[0].meta["val"].dtype  # type: ignore[union-attr]
            real = REAL_OF.get(dtype, dtype)
            products = self._by_products and (self._on_host or real == torch.float32)
            return functools.partial(_FFT[node.target], Transformer(self._tables, products))
        if node.target not in self._handlers:
            raise ComplexError(f"{node.target} of complex numbers")
        return self._handlers[node.target]

    def _constant(self, value: Tensor) -> Node:
        return self._tables.node_of(value)


def _replace(values: Any, replace: Callable[[Node], Any]) -> Any:
    """``map_arg`` would take a pair apart."""
    if isinstance(values, Node):
        return replace(values)
    if isinstance(values, dict):
        return {name: _replace(value, replace) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return (
            type(values)(_replace(value, replace) for value in values)
            if type(values) in (list, tuple)
            else [_replace(value, replace) for value in values]
        )
    return values


def _settled(result: Any, expected: Any) -> Any:
    """Results in the shapes and dtypes of what is replaced; pairs as plain tuples of two."""
    if isinstance(expected, list | tuple):
        return [_settled(one, other) for one, other in zip(result, expected, strict=True)]
    if expected.dtype.is_complex:
        if not isinstance(result, Pair):
            raise NotImplementedError("expected a complex result")
        real = REAL_OF[expected.dtype]
        return tuple(settle(result, real, expected))
    return result.to(expected.dtype)


def _as_pairs(found: Any, expected: Any) -> Any:
    if isinstance(expected, list | tuple):
        return [_as_pairs(one, other) for one, other in zip(found, expected, strict=True)]
    return Pair(*found) if expected.dtype.is_complex else found


def _rename_outputs(program: ExportedProgram, old: Node, new: Node) -> None:
    for spec in program.graph_signature.output_specs:
        if spec.arg.name == old.name:
            spec.arg = TensorArgument(new.name)
