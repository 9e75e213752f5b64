"""What the tuner needs to know of attention: ``etcuda tune attention``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from etcuda.kernels.attention.cluster_op import attention_cluster
from etcuda.kernels.attention.configs import (
    SplitConfig,
    cluster_candidates,
    merge_candidates,
    section_candidates,
    split_candidates,
    tiled_candidates,
    with_merge,
)
from etcuda.kernels.attention.hopper.decode import ClusterConfig
from etcuda.kernels.attention.op import attention_split, attention_tiled
from etcuda.kernels.attention.problem import AttentionProblem
from etcuda.kernels.attention.reference import attention_reference
from etcuda.kernels.attention.shapes import cluster_problems, split_problems, tiled_problems
from etcuda.kernels.attention.table import FORMAT, Config, KernelName
from etcuda.kernels.common.device import Device
from etcuda.kernels.common.tuning import Job, Tuning

_COLD_BYTES = 200 << 20
_MOST_SETS = 64
# Keys of the small problem on which a configuration is compiled and checked. All tuned lengths are multiples of 16, as
# this is, so that the compiled kernel is the same.
_CHECK_KEYS = 256

AttentionJob = Job[KernelName, AttentionProblem, Config]


def make_inputs(problem: AttentionProblem, num_sets: int = 1) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Random queries, and so many sets of keys and values."""
    width, dtype = problem.head_dim, problem.dtype
    q = torch.randn(problem.batch, problem.num_heads, problem.l_q, width, dtype=dtype, device="cuda")
    shape = (problem.batch, problem.num_kv_heads, problem.l_kv, width)
    keys, values = (
        [torch.randn(shape, dtype=dtype, device="cuda") for _ in range(num_sets)] for _ in ("keys", "values")
    )
    return q, keys, values


def call_kernel(
    kernel: KernelName, problem: AttentionProblem, config: Config, q: Tensor, k: Tensor, v: Tensor
) -> Tensor:
    """Runs a problem without tensors for masking on given tensors."""
    ops: dict[KernelName, Callable[..., Tensor]] = {
        "split": attention_split, "tiled": attention_tiled, "cluster": attention_cluster,
    }  # fmt: skip
    scale = problem.scale or problem.head_dim**-0.5
    return ops[kernel](q, k, v, None, None, None, scale, problem.causal, problem.window, 0.0, *config.to_args())


class AttentionTuning(Tuning[KernelName, AttentionProblem, Config]):
    """Attention: bf16, causal or not, without a tensor for masking."""

    table_format = FORMAT
    timing = "microseconds per call in a CUDA graph, keys and values not in the L2 cache, median"

    def problems(self) -> list[list[tuple[KernelName, AttentionProblem]]]:
        """Decode at batch 1 of the first families and prefill of two, then the rest of each."""
        split: list[tuple[KernelName, AttentionProblem]] = [("split", problem) for _, problem in split_problems()]
        tiled: list[tuple[KernelName, AttentionProblem]] = [("tiled", problem) for _, problem in tiled_problems()]
        one: list[tuple[KernelName, AttentionProblem]] = [("cluster", problem) for _, problem in cluster_problems()]
        return [split[:36], tiled[:24], one, split[36:60], tiled[24:], split[60:]]

    def candidates(self, kernel: KernelName, problem: AttentionProblem, device: Device) -> Sequence[Config]:
        """Configurations worth measuring."""
        if kernel == "cluster":
            return cluster_candidates(problem, device)
        return split_candidates(problem, device) if kernel == "split" else tiled_candidates(problem, device)

    def variants(self, problem: AttentionProblem, config: Config) -> Sequence[Config]:
        """Other reductions of the split kernel, other sections of the tiled one."""
        if isinstance(config, SplitConfig):
            return merge_candidates(problem, config)
        if isinstance(config, ClusterConfig):
            return [config]
        return section_candidates(problem, config)

    def variant_jobs(self, kernel: KernelName, problem: AttentionProblem, device: Device) -> Iterator[AttentionJob]:
        """One job for every compiled reduction that a problem's configurations may need."""
        if kernel != "split":
            return
        first = self.job(kernel, problem, split_candidates(problem, device)[0])
        assert isinstance(first.config, SplitConfig)
        small = dataclasses.replace(first.problem, num_heads=first.problem.group, num_kv_heads=1)
        for num_splits in (2, 4, 8, 16, 32, 64, 128):
            for config in merge_candidates(small, dataclasses.replace(first.config, num_splits=num_splits)):
                yield AttentionJob(kernel, small, config)

    def job(self, kernel: KernelName, problem: AttentionProblem, config: Config) -> AttentionJob:
        """Batch, lengths, the number of splits and the section do not change what is compiled."""
        few = min(problem.l_q, _CHECK_KEYS)
        small = dataclasses.replace(problem, batch=1, l_q=few, l_kv=_CHECK_KEYS)
        if isinstance(config, SplitConfig):
            return AttentionJob(kernel, small, with_merge(small, dataclasses.replace(config, num_splits=4), 64))
        if isinstance(config, ClusterConfig):
            return AttentionJob(kernel, small, config)
        small = dataclasses.replace(small, num_heads=2, num_kv_heads=1)
        return AttentionJob(kernel, small, dataclasses.replace(config, section=2))

    def num_sets(self, problem: AttentionProblem) -> int:
        """As many keys and values as do not fit the L2 cache."""
        return max(2, min(_MOST_SETS, math.ceil(_COLD_BYTES / _bytes_of_keys(problem))))

    def num_calls(self, problem: AttentionProblem, num_sets: int) -> int:
        """Few of long calls."""
        is_long = problem.l_q > 64 or _bytes_of_keys(problem) > _COLD_BYTES
        return max(num_sets, 4 if is_long else 24)

    def make_inputs(self, kernel: KernelName, problem: AttentionProblem, num_sets: int) -> Any:
        """Queries, and sets of keys and values."""
        return make_inputs(problem, num_sets)

    def call(self, kernel: KernelName, problem: AttentionProblem, config: Config, inputs: Any, index: int) -> Tensor:
        """The kernel on one set of keys and values."""
        q, keys, values = inputs
        return call_kernel(kernel, problem, config, q, keys[index], values[index])

    def expected(self, kernel: KernelName, problem: AttentionProblem, inputs: Any) -> Tensor:
        """The reference in double precision."""
        q, (k, *_), (v, *_) = inputs
        return attention_reference(q.double(), k.double(), v.double(), causal=problem.causal, window=problem.window)

    def describe(self, problem: AttentionProblem) -> str:
        """Heads and lengths."""
        heads = f"{problem.num_heads}/{problem.num_kv_heads}x{problem.head_dim}"
        return f"{heads} batch {problem.batch} L_q {problem.l_q} L_kv {problem.l_kv} window {problem.window}"


def _bytes_of_keys(problem: AttentionProblem) -> int:
    return 2 * problem.batch * problem.num_kv_heads * problem.l_kv * problem.head_dim * problem.dtype.itemsize


TUNING = AttentionTuning()
