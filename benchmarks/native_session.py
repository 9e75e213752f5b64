"""Runs a program in this process through ``benchmarks/native/session.cpp``, whatever release torch is."""

from __future__ import annotations

import ctypes
import pathlib
from types import TracebackType
from typing import Any

import torch
from torch import Tensor


class NativeSession:
    """A loaded program; its state lasts until it is closed.

    Args:
        library: what ``compile_native("session.cpp", library, shared=True)`` made.
        program: the ``.pte`` file.
        weights: its ``.ptd`` file, where the weights are kept apart.

    Raises:
        RuntimeError: the program cannot be loaded.
    """

    def __init__(self, library: pathlib.Path, program: pathlib.Path, weights: pathlib.Path | None = None) -> None:
        self._library = ctypes.CDLL(str(library))
        for name in ("bench_open", "bench_load", "bench_call", "bench_output"):
            getattr(self._library, name).restype = ctypes.c_char_p
        self._session = ctypes.c_void_p()
        path = None if weights is None else str(weights).encode()
        self._check(self._library.bench_open(str(program).encode(), path, ctypes.byref(self._session)))

    def load(self, method: str) -> None:
        """Loads a method with its weights, which its first call does otherwise.

        Raises:
            RuntimeError: it cannot be loaded.
        """
        self._check(self._library.bench_load(self._session, method.encode()))

    def call(self, method: str, *inputs: Tensor) -> float:
        """Microseconds of the host's clock that one execution takes, inputs and outputs in host memory.

        Args:
            method: its name.
            inputs: int64 tensors on the CPU.

        Raises:
            TypeError: an input is of another dtype.
            RuntimeError: the execution failed.
        """
        for index, tensor in enumerate(inputs):
            if tensor.dtype != torch.int64 or tensor.device.type != "cpu":
                raise TypeError(f"input {index}: expected int64 on the CPU, got {tensor.dtype} on {tensor.device}.")
        kept = [tensor.contiguous() for tensor in inputs]
        data = (ctypes.c_void_p * len(kept))(*(tensor.data_ptr() for tensor in kept))
        ranks = (ctypes.c_int32 * len(kept))(*(tensor.dim() for tensor in kept))
        sizes = [size for tensor in kept for size in tensor.shape]
        elapsed = ctypes.c_int64()
        self._check(
            self._library.bench_call(
                self._session,
                method.encode(),
                len(kept),
                data,
                ranks,
                (ctypes.c_int32 * len(sizes))(*sizes),
                ctypes.byref(elapsed),
            )
        )
        return elapsed.value / 1e3

    def output(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The first output of the last call.

        Raises:
            RuntimeError: it has another size.
        """
        result = torch.empty(shape, dtype=dtype)
        nbytes = ctypes.c_int64(result.numel() * result.element_size())
        self._check(self._library.bench_output(self._session, ctypes.c_void_p(result.data_ptr()), nbytes))
        return result

    def close(self) -> None:
        """Unloads the program."""
        if self._session:
            self._library.bench_close(self._session)
            self._session = ctypes.c_void_p()

    def __enter__(self) -> NativeSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, message: Any) -> None:
        if message is not None:
            raise RuntimeError(message.decode())
