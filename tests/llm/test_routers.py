"""Routers choose what transformers' own choose, with the same weights."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from etcuda.llm.routers import ROUTERS, replace_routers

_FOLDERS = {
    "MixtralTopKRouter": "mixtral", "OlmoeTopKRouter": "olmoe", "Qwen2MoeTopKRouter": "qwen2_moe",
    "Qwen3MoeTopKRouter": "qwen3_moe", "Qwen3NextTopKRouter": "qwen3_next", "Qwen3_5MoeTopKRouter": "qwen3_5_moe",
    "GptOssTopKRouter": "gpt_oss", "DeepseekV3TopkRouter": "deepseek_v3", "Gemma4TextRouter": "gemma4",
}  # fmt: skip
_SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_experts": 12, "num_local_experts": 12, "num_experts_per_tok": 3, "top_k_experts": 3,
    "n_routed_experts": 12, "n_group": 3, "topk_group": 2, "routed_scaling_factor": 2.5,
}  # fmt: skip


def test_every_router_is_tried() -> None:
    assert set(_FOLDERS) == set(ROUTERS)


@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize("normalize", [True, False])
def test_the_operator_chooses_the_same(name: str, normalize: bool) -> None:
    folder = _FOLDERS[name]
    config = AutoConfig.for_model(folder, **_SIZES)
    config = getattr(config, "text_config", config)
    for key, value in {**_SIZES, "norm_topk_prob": normalize}.items():
        setattr(config, key, value)
    module = getattr(importlib.import_module(f"transformers.models.{folder}.modeling_{folder}"), name)
    torch.manual_seed(0)
    router = module(config).eval()
    for parameter in [*router.parameters(), *router.buffers()]:
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(1, 6, 32)
    with torch.no_grad():
        x = x[0] if name.startswith("Gemma4") else x
        expected = router(x[0] if name.startswith("GptOss") else x)
        replace_routers(router)
        got = router(x)
    # The order of a token's experts, which transformers leaves open for some, does not matter.
    order, other = expected[2].argsort(-1), got[2].argsort(-1)
    torch.testing.assert_close(got[0], expected[0])
    assert torch.equal(got[2].gather(1, other).long(), expected[2].gather(1, order))
    torch.testing.assert_close(got[1].gather(1, other), expected[1].gather(1, order))
    assert got[1].dtype == expected[1].dtype
