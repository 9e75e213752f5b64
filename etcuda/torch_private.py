"""What the partitioner and the passes ask of PyTorch, Inductor and ExecuTorch beyond their public interfaces.

Each function has a test of its own in ``tests/ground/test_torch_private.py``, on the real objects, which fails when a
release changes them. What generating code needs (Inductor's code generators, Triton's compiler) is in
``etcuda.backend.inductor``.

The line: some names with an underscore, or called experimental, are used where they are needed, because no public name
stands for them and every project that rewrites graphs relies on them: ``torch._ops.OpOverload`` with its ``_schema``,
``torch._ops.HigherOrderOperator``, ``make_fx``, ``statically_known_true`` and ``free_unbacked_symbols``.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import sys
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, MutableSet, Sequence
from typing import Any

import torch
import torch.utils._pytree
from torch._dispatch.python import enable_python_dispatcher
from torch._guards import detect_fake_mode
from torch.export.exported_program import ExportedProgram, ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import ExportGraphSignature
from torch.fx import GraphModule, Node, Proxy, _graph_pickler
from torch.fx import config as fx_config
from torch.multiprocessing import reductions
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.reference import PythonReferenceAnalysis

# Symbolic numbers: sizes that are not fixed, and what is computed from them.


def expression(value: object) -> Any | None:
    """The sympy expression of a symbolic number, the number itself if it is one, else ``None``."""
    if isinstance(value, torch.SymInt | torch.SymBool | torch.SymFloat):
        return value.node.expr
    return value if isinstance(value, bool | int | float) else None


def hint(value: int | torch.SymInt | torch.SymBool) -> int:
    """A number at the example inputs; a truth value stays one."""
    if not isinstance(value, torch.SymInt | torch.SymBool):
        return value
    found: Any = value.node.hint
    return found if isinstance(found, bool) else int(found)


def example_sizes(values: Sequence[object]) -> dict[Any, int]:
    """What the symbols in the sizes of fake tensors stood for when they were traced, where that is known."""
    found: dict[Any, int] = {}
    for value in values:
        for size in value.shape if isinstance(value, torch.Tensor) else ():
            if isinstance(size, torch.SymInt):
                environment: Any = size.node.shape_env
                # torch 2.11 has the other name.
                known = getattr(environment, "backed_var_to_val", None)
                known = environment.var_to_val if known is None else known
                found |= {symbol: int(known[symbol]) for symbol in size.node.expr.free_symbols if symbol in known}
    return found


def bounds(size: int | torch.SymInt) -> tuple[int, int | None]:
    """The least and the greatest value that a size can take; 0 and ``None`` where nothing bounds it."""
    if not isinstance(size, torch.SymInt):
        return size, size
    environment: Any = size.node.shape_env
    if environment is None:
        return 0, None
    found = environment.bound_sympy(size.node.expr)
    least = int(found.lower) if found.lower.is_Integer else 0
    return least, int(found.upper) if found.upper.is_Integer else None


@contextlib.contextmanager
def restored_sizes(values: Sequence[object]) -> Iterator[None]:
    """What is found out about the sizes of fake tensors inside, and what is left half done, is forgotten at the end.

    Args:
        values: those of one program, which share what is known.
    """
    environment: Any = getattr(fake_mode_of(values), "shape_env", None)
    if environment is None:
        yield
        return
    before = {name: _copied(value) for name, value in vars(environment).items()}
    try:
        yield
    finally:
        for name, value in before.items():
            # Counters go on: new symbols have new names, and what was cached for a version is not found again.
            if not name.endswith("_counter"):
                setattr(environment, name, value)
        for name in ("_version_counter", "_replacements_version_counter"):
            if hasattr(environment, name):
                setattr(environment, name, getattr(environment, name) + 1)


def _copied(value: Any) -> Any:
    """Containers copied, those inside of mappings too; anything else as it is."""
    if isinstance(value, dict):
        copied = value.copy()
        for key, each in value.items():
            if isinstance(each, list | MutableSet):
                copied[key] = _copied(each)
        return copied
    if isinstance(value, MutableSet):
        return type(value)(value)  # type: ignore[call-arg]
    return list(value) if type(value) is list else value


def forget_pending_symbols(values: Sequence[object]) -> None:
    """Drops symbols that an earlier lowering made and gave to no result: the next one would fail for them.

    Args:
        values: fake tensors of one program.
    """
    environment: Any = getattr(fake_mode_of(values), "shape_env", None)
    if environment is not None:
        environment.pending_fresh_unbacked_symbols.clear()


def build_expression(value: Any, symbols: Mapping[Any, Node]) -> Node:
    """Inserts the calls that compute a sympy expression, at the graph's insertion point; returns the last of them.

    Args:
        value: an expression with a symbol in it at least.
        symbols: for each of its symbols the node that yields it.
    """
    proxies = {symbol: Proxy(node) for symbol, node in symbols.items()}
    made: Node = sympy_interp(PythonReferenceAnalysis, proxies, value).node
    return made


# Fake tensors: shape, strides and dtype without memory.


def is_fake(value: object) -> bool:
    """Whether a value is a tensor without memory."""
    return isinstance(value, torch._subclasses.FakeTensor)


def fake_mode_of(values: Sequence[object]) -> Any | None:
    """The mode that the fake tensors among ``values`` belong to, or the active one; ``None`` without either."""
    return detect_fake_mode(list(values))


@contextlib.contextmanager
def on_fake_tensors(mode: Any | None) -> Iterator[None]:
    """Inside, operators on fake tensors compute shapes, and sizes that are symbolic stay so.

    Without ``mode``, ``arange`` of a symbolic size would make a real tensor, of the size at the hint. Without the
    Python dispatcher, operators implemented in C++ would fix symbolic sizes to their hints.
    """
    with mode or contextlib.nullcontext(), enable_python_dispatcher():
        yield


def storage_key(tensor: torch.Tensor) -> int:
    """Equal for two tensors that share memory, of fake ones too, as long as both live."""
    return int(tensor.untyped_storage()._cdata)


def weak_storage(tensor: torch.Tensor) -> Hashable:
    """A key for the memory of a tensor: while the key lives, no other memory has an equal one. Keeps no bytes alive."""
    # torch declares no types here.
    made: Any = reductions.StorageWeakRef
    reference: Hashable = made(tensor.untyped_storage())
    return reference


def is_gone(key: Hashable) -> bool:
    """Whether nothing uses the memory of a ``weak_storage`` any more."""
    reference: Any = key
    return bool(reference.expired())


# Programs and their operators.


def input_spec(names: Sequence[str]) -> Any:
    """How a program says that it is called with these inputs, by position."""
    return torch.utils._pytree.tree_flatten((tuple(names), {}))[1]


def part_of_program(
    program: ExportedProgram, module: torch.fx.GraphModule, signature: ExportGraphSignature
) -> ExportedProgram:
    """A part of a program as one of its own.

    Args:
        program: the whole, whose sizes the part has.
        module: the part's graph, without weights.
        signature: its inputs, all from the user, and its outputs.
    """
    from torch._export.verifier import Verifier

    results = torch.utils._pytree.tree_flatten(tuple(signature.user_outputs))[1]
    call = ModuleCallSignature([], [], input_spec([str(name) for name in signature.user_inputs]), results)
    return ExportedProgram(
        root=module,
        graph=module.graph,
        graph_signature=signature,
        state_dict={},
        range_constraints=program.range_constraints,
        module_call_graph=[ModuleCallEntry("", call)],
        example_inputs=None,
        constants={},
        verifiers=[Verifier],
    )


def behind_edge(target: object) -> object:
    """The ATen operator behind an operator of ExecuTorch's Edge dialect; anything else unchanged."""
    return target if isinstance(target, torch._ops.OpOverload) else getattr(target, "_op", target)


def is_core(op: torch._ops.OpOverload) -> bool:
    """Whether ExecuTorch's check of operators lets ``op`` pass without being asked to."""
    from executorch.exir.verification.verifier import EXIRATenDialectVerifier
    from torch._export.verifier import SpecViolationError

    try:
        EXIRATenDialectVerifier().check_valid_op(op)
    except SpecViolationError:
        return False
    return True


class Lowering(enum.Enum):
    """How Inductor turns an operator into code."""

    GENERATED = "generated"  # a kernel of its own making
    DECOMPOSED = "decomposed"  # other operators, lowered in turn
    FALLBACK = "fallback"  # a call to a library kernel
    NONE = "none"  # unknown to it: would be a call to PyTorch


@functools.cache
def lowering_of(op: torch._ops.OpOverload) -> Lowering:
    """How Inductor lowers ``op`` for every argument alike; what depends on arguments is for the rules to know.

    The set ``lowering.fallbacks`` is not asked: lowering a graph can add to it, so that the answer would depend on
    what the process did before.
    """
    from torch._inductor import lowering
    from torch._inductor.decomposition import select_decomp_table

    if op in select_decomp_table():
        return Lowering.DECOMPOSED
    handler = lowering.lowerings.get(op) or lowering.lowerings.get(op.overloadpacket)
    if handler is not None:
        return Lowering.FALLBACK if getattr(handler, "_is_fallback_handler", False) else Lowering.GENERATED
    name: str = op.name()  # type: ignore[no-untyped-call]  # with the overload's, if it has one
    if torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd"):
        return Lowering.DECOMPOSED
    return Lowering.NONE


def has_device_function(op: torch._ops.OpOverload) -> bool:
    """Whether a special function (``digamma``, ``igamma``) has code for the GPU; true of every other operator."""
    return op.overloadpacket not in _without_device_code()


@functools.cache
def _without_device_code() -> frozenset[torch._ops.OpOverloadPacket]:
    from torch._inductor.codegen.common import pointwise_overrides_data

    missing = (data.name for data in pointwise_overrides_data.values() if data.triton is None)
    return frozenset(getattr(torch.ops.aten, name) for name in missing if hasattr(torch.ops.aten, name))


def generates_scans() -> bool:
    """Whether Inductor generates scans of up to thousands of elements for a GPU, whatever else a kernel holds.

    That of torch 2.11 cuts those of few rows, with a workspace, or leaves them to a library; Triton 3.6 does not
    compile some beside 16-bit floats.
    """
    major, minor = torch.__version__.split(".")[:2]
    return (int(major), int(minor)) >= (2, 14)


def quantized_operators() -> Any:
    """The namespace of operators in which PT2E writes quantised models, all of them defined."""
    import torch.ao.quantization.fx._decomposed  # defines them

    return torch.ops.quantized_decomposed


# What PyTorch does with each graph for people who look at it, and an export has no use for.

_RECOMPILE = GraphModule.recompile
# Methods that read the code where it is kept.
_NEED_CODE = ("__str__", "__reduce__", "__reduce_package__")


def make_graph_code_when_called() -> Callable[[], None]:
    """Has a graph module make its Python code when it is first called or looked at, not at each change of its graph.

    Returns:
        What ends that. Modules made meanwhile make their code at the next look all the same.
    """
    GraphModule.recompile = _mark_stale  # type: ignore[assignment, method-assign]

    def restore() -> None:
        GraphModule.recompile = _RECOMPILE  # type: ignore[method-assign]

    return restore


def keep_no_stack_traces() -> Callable[[], None]:
    """Keeps the tracer from looking up the source lines behind each node; torch 2.11 has no such switch.

    Returns:
        What ends that.
    """
    before = getattr(fx_config, "do_not_emit_stack_traces", None)
    if before is None:
        return lambda: None
    fx_config.do_not_emit_stack_traces = True
    return lambda: setattr(fx_config, "do_not_emit_stack_traces", before)


def _mark_stale(module: GraphModule) -> Any:
    """Stands in for ``GraphModule.recompile``."""
    caller = sys._getframe(1)
    is_pickled = caller.f_code.co_name.startswith("__reduce") or caller.f_globals["__name__"] == _graph_pickler.__name__
    if is_pickled:
        # It needs the code, or what is returned.
        return _RECOMPILE(module)
    codegen: Any = module._graph._codegen
    if hasattr(codegen, "pytree_info"):
        module._in_spec, module._out_spec = codegen.pytree_info.in_spec, codegen.pytree_info.out_spec
    for child in module.children():
        if isinstance(child, GraphModule):
            child.recompile()
    # Each graph module has a class of its own.
    own: Any = type(module)
    own.forward = _Later(module, "forward")
    own.code = _Later(module, "code")
    for name in _NEED_CODE:
        setattr(own, name, functools.partialmethod(_with_code, name))
    return None


class _Later:
    """Stands for ``forward`` or ``code`` of a graph module, and gives way to the real one when somebody asks for it."""

    def __init__(self, module: GraphModule, name: str) -> None:
        self.module, self.name = weakref.ref(module), name

    def __get__(self, module: GraphModule | None, owner: type) -> Any:
        known = module if module is not None else self.module()
        if known is None:
            return self
        _make_code(known)
        return getattr(owner if module is None else module, self.name)


def _make_code(module: GraphModule) -> None:
    own: Any = type(module)
    for name in ("forward", "code", *_NEED_CODE):
        if name in vars(own):
            delattr(own, name)
    _RECOMPILE(module)


def _with_code(module: GraphModule, name: str, *args: Any) -> Any:
    _make_code(module)
    return getattr(module, name)(*args)
