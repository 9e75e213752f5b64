"""Sessions: several states over one set of weights."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import os
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from etcuda.errors import SessionError
from etcuda.runtime.binding import last_error, load

_WHOLE = -(2**31)
_CHAR_PP = ctypes.POINTER(ctypes.c_char_p)
_BYTES_P = ctypes.POINTER(ctypes.c_uint8)


class _State(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("dtype", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("sizes", ctypes.POINTER(ctypes.c_int64)),
        ("nbytes", ctypes.c_uint64),
        ("device_type", ctypes.c_int32),
        ("device_index", ctypes.c_int32),
    )


# By c10::ScalarType.
_DTYPES = {
    0: torch.uint8,
    1: torch.int8,
    2: torch.int16,
    3: torch.int32,
    4: torch.int64,
    5: torch.float16,
    6: torch.float32,
    7: torch.float64,
    11: torch.bool,
    15: torch.bfloat16,
}


class ExecutableMethod(Protocol):
    """What a session can run: ``executorch.runtime.Method``."""

    def execute(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """Runs the method on ``inputs`` and returns its outputs."""


@dataclasses.dataclass(frozen=True)
class SessionState:
    """One mutable buffer of a session.

    Attributes:
        name: of the buffer in the model, such as ``"layers.0.k_cache"``.
        dtype: of its elements. Buffers that share memory are listed as bytes under one name.
        shape: its sizes.
        nbytes: the memory that it takes, in bytes.
        device: ``"cpu"`` or ``"cuda:0"`` and so on.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    nbytes: int
    device: str


@functools.lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    library = load()
    handle, out = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)
    size_out = ctypes.POINTER(ctypes.c_size_t)
    signatures: dict[str, tuple[Any, ...]] = {
        "create": (out,),
        "enter": (handle,),
        "leave": (handle,),
        "reset": (handle,),
        "fork": (handle, out),
        "fork_to": (handle, ctypes.c_int64, _CHAR_PP, ctypes.POINTER(ctypes.c_int32), ctypes.c_size_t, out),
        "save": (handle, ctypes.c_char_p),
        "save_bytes": (handle, ctypes.POINTER(_BYTES_P), size_out),
        "restore": (handle, ctypes.c_char_p),
        "restore_bytes": (handle, ctypes.c_char_p, ctypes.c_size_t),
        "states": (handle, ctypes.POINTER(ctypes.POINTER(_State)), size_out),
    }
    for name, arguments in signatures.items():
        function = getattr(library, f"etcuda_session_{name}")
        function.argtypes, function.restype = arguments, ctypes.c_int32
    library.etcuda_session_destroy.argtypes, library.etcuda_session_destroy.restype = (handle,), None
    library.etcuda_free.argtypes, library.etcuda_free.restype = (handle,), None
    return library


def _check(status: int) -> None:
    if status != 0:
        raise SessionError(last_error())


def _path(path: str | os.PathLike[str]) -> bytes:
    encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise SessionError(f"{path!r}: expected a path, got one with a null character. Correct it.")
    return encoded


class Session:
    """A state of its own for the methods of a program: its KV caches, counters and other mutable buffers.

    ::

        decode = program.load_method("decode")
        chat = Session()
        chat.execute(decode, inputs)          # uses and changes the state of `chat` alone
        branch = chat.fork()                  # goes its own way from here on
        with chat:                            # the same for any call of this thread
            decode.execute(inputs)

    A new session has the initial content of every buffer. It belongs to the program whose method first used state in
    it, by the program's content: it outlives a loaded program, and goes on with the same one loaded again. Memory is
    taken when a method first uses a buffer, on the device where the method runs, and freed with the session. Methods
    that run outside of any session use the state that ExecuTorch's own interface has, which ``reset_state()`` resets.

    May be used from any thread; calls in one session, and of one method, take turns.
    """

    def __init__(self) -> None:
        handle = ctypes.c_void_p()
        _check(_library().etcuda_session_create(ctypes.byref(handle)))
        self._own(handle)

    def _own(self, handle: ctypes.c_void_p) -> None:
        self._handle = handle
        weakref.finalize(self, _library().etcuda_session_destroy, handle)

    @classmethod
    def _of(cls, handle: ctypes.c_void_p) -> Session:
        session = cls.__new__(cls)
        session._own(handle)
        return session

    def __enter__(self) -> Session:
        _check(_library().etcuda_session_enter(self._handle))
        return self

    def __exit__(self, *exception: object) -> None:
        if not _library().etcuda_session_leave(self._handle):
            raise SessionError(
                "expected to leave the session that this thread entered last, got another one. Leave sessions on the "
                "thread that entered them, innermost first; where tasks share a thread, use session.execute()."
            )

    def execute(self, method: ExecutableMethod, inputs: Sequence[Any]) -> Sequence[Any]:
        """Runs a method in this session.

        Args:
            method: of ``executorch.runtime``; all its buffers that etcuda keeps are this session's.
            inputs: as for ``method.execute``.

        Returns:
            What ``method.execute`` returns.

        Raises:
            RuntimeError: the method failed, or belongs to another program than this session;
                ``etcuda.runtime.last_error()`` says why.
        """
        with self:
            return method.execute(inputs)

    def reset(self) -> None:
        """Puts back the initial content of every buffer.

        Raises:
            SessionError: the driver failed.
        """
        _check(_library().etcuda_session_reset(self._handle))

    def fork(self, length: int | None = None, dims: Mapping[str, int | None] | None = None) -> Session:
        """A new session with a copy of this one's state.

        Args:
            length: how many positions to copy of each buffer along its dimension in ``dims``; what is behind them is
                initial content. ``None`` copies everything.
            dims: for ``length``: the dimension along which a buffer grows, by its name or a pattern with ``*`` and
                ``?``. The first that matches counts; ``None`` copies a buffer whole. Every buffer must match one.

        Raises:
            SessionError: a buffer has no such dimension or fewer positions, no entry of ``dims`` names it, an entry
                names none, the initial content is in a program that is not loaded any more, or memory ran out.
            ValueError: one of ``length`` and ``dims`` is given alone, or is no length or dimension.
        """
        copy = ctypes.c_void_p()
        if length is None:
            if dims is not None:
                raise ValueError("fork: expected dims together with a length, got dims alone. Give both or neither.")
            _check(_library().etcuda_session_fork(self._handle, ctypes.byref(copy)))
            return Session._of(copy)
        if dims is None:
            raise ValueError(
                'fork: expected dims with a length, such as {"*_cache": 2}: which dimension of a buffer grows is not '
                "known otherwise."
            )
        numbers = [length, *(dim for dim in dims.values() if dim is not None)]
        wrong = [n for n in numbers if not isinstance(n, int) or isinstance(n, bool) or not -(2**31) < n < 2**63]
        wrong += [n for n in numbers[1:] if n not in wrong and n >= 2**31]
        if wrong:
            raise ValueError(f"fork: expected integers for the length and the dimensions, got {wrong[0]!r}.")
        patterns = (ctypes.c_char_p * len(dims))(*(pattern.encode() for pattern in dims))
        places = (ctypes.c_int32 * len(dims))(*(_WHOLE if dim is None else dim for dim in dims.values()))
        _check(_library().etcuda_session_fork_to(self._handle, length, patterns, places, len(dims), ctypes.byref(copy)))
        return Session._of(copy)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the state to a file, which is replaced whole or not at all. ``docs/sessions.md`` has the format.

        Raises:
            SessionError: the file cannot be written.
        """
        _check(_library().etcuda_session_save(self._handle, _path(path)))

    def to_bytes(self) -> bytes:
        """What ``save`` writes, as bytes.

        Raises:
            SessionError: memory ran out.
        """
        library, data, nbytes = _library(), _BYTES_P(), ctypes.c_size_t()
        _check(library.etcuda_session_save_bytes(self._handle, ctypes.byref(data), ctypes.byref(nbytes)))
        try:
            return ctypes.string_at(data, nbytes.value)
        finally:
            library.etcuda_free(data)

    def restore(self, source: str | os.PathLike[str] | bytes | bytearray | memoryview) -> None:
        """Takes over the state that ``save`` or ``to_bytes`` wrote. Buffers that it does not have get their initial
        content.

        Args:
            source: a path, or the bytes themselves.

        Raises:
            SessionError: the file cannot be read, is damaged, or was saved with another program or another export of
                it. The session is what it was.
        """
        if isinstance(source, bytes | bytearray | memoryview):
            data = bytes(source)
            _check(_library().etcuda_session_restore_bytes(self._handle, data, len(data)))
        else:
            _check(_library().etcuda_session_restore(self._handle, _path(source)))

    def states(self) -> list[SessionState]:
        """The buffers that the session holds, sorted by name: those that a method has used in it, or that were
        restored."""
        library, block, count = _library(), ctypes.POINTER(_State)(), ctypes.c_size_t()
        _check(library.etcuda_session_states(self._handle, ctypes.byref(block), ctypes.byref(count)))
        try:
            return [_state(block[i]) for i in range(count.value)]
        finally:
            library.etcuda_free(block)

    @property
    def nbytes(self) -> int:
        """Memory that the session's buffers take, in bytes."""
        return sum(state.nbytes for state in self.states())


def _state(state: _State) -> SessionState:
    return SessionState(
        name=state.name.decode(errors="replace"),
        dtype=_DTYPES.get(state.dtype, torch.uint8),
        shape=tuple(state.sizes[: state.rank]),
        nbytes=state.nbytes,
        device=f"cuda:{state.device_index}" if state.device_type else "cpu",
    )
