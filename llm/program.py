"""A loaded program of a language model: its methods and constants."""

from __future__ import annotations

import pathlib
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from etcuda.errors import GenerationError
from etcuda.llm.device_memory import device_memory_problem
from etcuda.llm.sampling import SamplingOptions


class TextProgram:
    """``prefill`` and ``decode`` of a ``.pte``, loaded.

    Args:
        path: of the program.
        data_path: of its weights; ``None`` is ``m.ptd`` beside ``m.pte``, if there is one.

    Attributes:
        max_seq_len: tokens that the caches hold.
        chunk: most tokens of one call of ``prefill``.
        vocab_size: number of tokens.
        bos_id: the token that a text begins with, or ``None``.
        eos_ids: tokens that end an answer.
        max_rollback: tokens by which a sequence can be taken back; ``None`` for any number.
        weight_bytes: of the weights.
        has_step: whether it samples on the device.
        cache_bytes: of the caches of one session.
        limit: tokens a second at which the weights that a token reads take the bandwidth of the GPU that the program is
            made for; 0 where that is not known.
        load_seconds: that loading took.

    Raises:
        GenerationError: there is no such file, it does not load here, or is no language model.
    """

    def __init__(self, path: pathlib.Path, data_path: pathlib.Path | None = None) -> None:
        from executorch.runtime import Runtime

        import etcuda.runtime  # registers the delegate

        start = time.perf_counter()
        if not path.is_file():
            raise GenerationError(f"{path}: expected a program, got no such file. Make one with etcuda export.")
        if data_path is None and path.with_suffix(".ptd").is_file():
            data_path = path.with_suffix(".ptd")
        if data_path is not None and not data_path.is_file():
            raise GenerationError(f"{data_path}: expected the program's weights, got no such file.")
        try:
            self._program = Runtime.get().load_program(path, data_path=data_path)
        except RuntimeError as error:
            raise GenerationError(f"{path}: expected a program that loads, got: {error}.") from error
        names = self._program.method_names
        missing = [name for name in ("prefill", "decode", "get_max_seq_len", "get_vocab_size") if name not in names]
        if missing:
            raise GenerationError(
                f"{path}: expected a language model that etcuda export wrote, got a program without "
                f"{', '.join(missing)}; it has {', '.join(sorted(names))}."
            )
        self._names = set(names)
        self.chunk = int(self._constant("get_max_seq_len")[0])
        self.max_seq_len = int(self._constant("get_max_context_len", [self.chunk])[0])
        self.vocab_size = int(self._constant("get_vocab_size")[0])
        self.eos_ids = frozenset(int(each) for each in self._constant("get_eos_ids", []))
        bos = self._constant("get_bos_id", [])
        self.bos_id = int(bos[0]) if bos else None
        rollback = self._constant("get_max_rollback", [])
        self.max_rollback = int(rollback[0]) if rollback else None
        self.weight_bytes = int(self._constant("get_weight_bytes", [0])[0])
        read = int(self._constant("get_decode_weight_bytes", [0])[0])
        bandwidth = 1e6 * int(self._constant("get_bandwidth_mbs", [0])[0])
        self.limit = bandwidth / read if read else 0.0
        self.cache_bytes = int(self._constant("get_cache_bytes", [0])[0])
        self.has_step = "generate_step" in names
        if int(self._constant("get_gpu_count", [0])[0]) and etcuda.runtime.gpu_available():
            free, total, in_use = etcuda.runtime.device_memory()
            problem = device_memory_problem(self.weight_bytes, self.cache_bytes, self.max_seq_len, free, total)
            # Later programs may share weights with those that are there.
            if problem is not None and not in_use:
                raise GenerationError(f"{path}: {problem}")
        self._methods = {}
        for name in ("prefill", "decode", *(("generate_step",) if self.has_step else ())):
            try:
                self._methods[name] = self._program.load_method(name)
            except RuntimeError as error:
                reason = etcuda.runtime.last_error() or str(error)
                raise GenerationError(f"{path}: method {name} does not load: {reason}") from error
        self.load_seconds = time.perf_counter() - start

    def _constant(self, name: str, default: list[Any] | None = None) -> list[Any]:
        if name not in self._names and default is not None:
            return default
        return list(self._program.load_method(name).execute(()))

    def run(self, session: Any, tokens: list[int], position: int) -> npt.NDArray[np.float32]:
        """Appends tokens to a session's caches.

        Args:
            session: of ``etcuda.runtime``.
            tokens: from one to ``chunk``.
            position: of the first in the sequence.

        Returns:
            Logits [vocab_size] of what follows the last.

        Raises:
            GenerationError: the program failed; the message has its reason.
        """
        ids = torch.tensor([tokens], dtype=torch.long)
        positions = torch.arange(position, position + len(tokens))
        out = self._execute(session, "decode" if len(tokens) == 1 else "prefill", (ids, positions))
        last: npt.NDArray[np.float32] = out.reshape(-1, self.vocab_size)[-1].float().numpy()
        return last

    def step(self, session: Any, token: int, position: int, options: SamplingOptions) -> int:
        """Appends a token to a session's caches, and draws the next one on the device.

        Args:
            session: of ``etcuda.runtime``.
            token: -1 for the one that the call before drew.
            position: of the token in the sequence.
            options: how.

        Raises:
            GenerationError: the program failed; the message has its reason.
        """
        settings = torch.tensor([options.temperature, options.top_p, options.min_p, options.repetition_penalty])
        every = torch.full((-(-self.vocab_size // 32),), -1, dtype=torch.int32)
        inputs = (
            torch.tensor([[token]]), torch.tensor([position]), settings, torch.tensor([options.top_k]),
            torch.tensor([options.seed]), every,
        )  # fmt: skip
        return int(self._execute(session, "generate_step", inputs))

    def _execute(self, session: Any, method: str, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        import etcuda.runtime

        try:
            out: torch.Tensor = session.execute(self._methods[method], inputs)[0]
        except RuntimeError as error:
            raise GenerationError(f"the program failed: {etcuda.runtime.last_error() or error}") from error
        return out
