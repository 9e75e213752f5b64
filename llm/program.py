"""A loaded program of a language model: its methods and constants."""

from __future__ import annotations

import json
import pathlib
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from etcuda.errors import GenerationError
from etcuda.llm.bandwidth import CacheReads, token_limit
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
        state_slots: states that recurrent layers keep, of the last tokens; 0 where that says nothing beside
            ``max_rollback``.
        weight_bytes: of the weights.
        has_step: whether it samples on the device.
        verify_rows: tokens that one call of ``verify`` takes at most; 0 if there is none.
        cache_bytes: of the caches of one session.
        tokenizer_files: of the tokenizer that is inside the program; none as a rule.
        load_seconds: that loading took.

    Raises:
        GenerationError: there is no such file, it does not load here, or is no language model.
    """

    state_slots: int = 0

    def __init__(self, path: pathlib.Path, data_path: pathlib.Path | None = None) -> None:
        from executorch.runtime import Runtime

        import etcuda.runtime  # registers the delegate

        start = time.perf_counter()
        if not path.is_file():
            got = "a folder" if path.is_dir() else "no such file"
            raise GenerationError(f"{path}: expected a program, got {got}. Make one with etcuda export.")
        if data_path is None and path.with_suffix(".ptd").is_file():
            data_path = path.with_suffix(".ptd")
        if data_path is not None and not data_path.is_file():
            raise GenerationError(f"{data_path}: expected the program's weights, got no such file.")
        try:
            self._program = Runtime.get().load_program(path, data_path=data_path)
        except RuntimeError as error:
            files = f"{path.name}{'' if data_path is None else f' and {data_path.name}'}"
            raise GenerationError(
                f"{path}: expected a program that loads, got: {error}. Copy {files} again, or export again."
            ) from error
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
        self.state_slots = int(self._constant("get_state_slots", [0])[0])
        self.weight_bytes = int(self._constant("get_weight_bytes", [0])[0])
        self._decode_weight_bytes = int(self._constant("get_decode_weight_bytes", [0])[0])
        self._cache_reads = CacheReads.from_numbers([int(each) for each in self._constant("get_cache_reads", [])])
        self._bandwidth = 1e6 * int(self._constant("get_bandwidth_mbs", [0])[0])
        self.cache_bytes = int(self._constant("get_cache_bytes", [0])[0])
        self.has_step = "generate_step" in names
        self.verify_rows = int(self._constant("get_verify_rows", [0])[0]) if "verify" in names else 0
        self.tokenizer_files: dict[str, str] = json.loads(self._constant("get_tokenizer_files", ["{}"])[0])
        if int(self._constant("get_gpu_count", [0])[0]) and etcuda.runtime.gpu_available():
            free, total, in_use = etcuda.runtime.device_memory()
            problem = device_memory_problem(self.weight_bytes, self.cache_bytes, self.max_seq_len, free, total)
            # Later programs may share weights with those that are there.
            if problem is not None and not in_use:
                raise GenerationError(f"{path}: {problem}")
        self._methods = {}
        more = [name for name in ("generate_step", "verify") if name in names]
        for name in ("prefill", "decode", *more):
            try:
                self._methods[name] = self._program.load_method(name)
            except RuntimeError as error:
                reason = etcuda.runtime.last_error() or str(error)
                if data_path is None and ".ptd" in reason:
                    reason += _where_weights_are(path)
                raise GenerationError(f"{path}: method {name} does not load: {reason}") from error
        self.load_seconds = time.perf_counter() - start

    def _constant(self, name: str, default: list[Any] | None = None) -> list[Any]:
        if name not in self._names and default is not None:
            return default
        return list(self._program.load_method(name).execute(()))

    def limit(self, tokens: float) -> float:
        """Tokens a second, behind ``tokens`` others, at which what they read takes the bandwidth of the GPU that the
        program is made for; 0 where that is not known."""
        return token_limit(self._bandwidth, self._decode_weight_bytes, self._cache_reads, tokens)

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

    def verify(self, session: Any, tokens: list[int], position: int) -> npt.NDArray[np.float32]:
        """Appends tokens to a session's caches.

        Args:
            session: of ``etcuda.runtime``.
            tokens: from 2 to ``verify_rows``.
            position: of the first in the sequence.

        Returns:
            Logits [tokens, vocab_size] of what follows each.

        Raises:
            GenerationError: the program failed; the message has its reason.
        """
        ids = torch.tensor([tokens], dtype=torch.long)
        positions = torch.arange(position, position + len(tokens))
        out = self._execute(session, "verify", (ids, positions))
        logits: npt.NDArray[np.float32] = out.reshape(len(tokens), self.vocab_size).float().numpy()
        return logits

    def step(
        self,
        session: Any,
        token: int,
        position: int,
        options: SamplingOptions,
        allowed: npt.NDArray[np.bool_] | None = None,
    ) -> int:
        """Appends a token to a session's caches, and draws the next one on the device.

        Args:
            session: of ``etcuda.runtime``.
            token: -1 for the one that the call before drew.
            position: of the token in the sequence.
            options: how.
            allowed: which tokens may be drawn, [vocab_size]; ``None`` for all.

        Raises:
            GenerationError: the program failed; the message has its reason.
        """
        settings = torch.tensor([options.temperature, options.top_p, options.min_p, options.repetition_penalty])
        words = -(-self.vocab_size // 32)
        if allowed is None:
            bits = torch.full((words,), -1, dtype=torch.int32)
        else:
            packed = np.zeros(4 * words, dtype=np.uint8)
            packed[: -(-self.vocab_size // 8)] = np.packbits(allowed, bitorder="little")
            bits = torch.from_numpy(packed.view("<i4"))
        inputs = (
            torch.tensor([[token]]), torch.tensor([position]), settings, torch.tensor([options.top_k]),
            torch.tensor([options.seed]), bits,
        )  # fmt: skip
        return int(self._execute(session, "generate_step", inputs))

    def _execute(self, session: Any, method: str, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        import etcuda.runtime

        try:
            out: torch.Tensor = session.execute(self._methods[method], inputs)[0]
        except RuntimeError as error:
            raise GenerationError(f"the program failed: {etcuda.runtime.last_error() or error}") from error
        return out


def _where_weights_are(path: pathlib.Path) -> str:
    weights = path.with_suffix(".ptd").name
    if path.with_suffix(".weights.json").is_file():
        return f" Make it: etcuda weights {path.name}."
    return f" There is no {weights} beside {path.name}: copy it there, or name the file with --data-path."
