"""Log-probabilities of tokens against PyTorch's, in fp64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from etcuda.llm.logprobs import token_logprobs


@pytest.mark.parametrize("count", [0, 1, 5, 40])
def test_the_likeliest_come_first_and_equal_ones_by_number(count: int) -> None:
    logits = np.random.default_rng(0).integers(-3, 4, 40).astype(np.float32)
    logits[7] = -np.inf
    found = token_logprobs(logits, 11, count)
    wanted = torch.log_softmax(torch.from_numpy(logits).double(), 0)
    values, order = torch.sort(wanted, descending=True, stable=True)
    assert [token for token, _ in found.top] == order[:count].tolist()
    np.testing.assert_allclose([value for _, value in found.top], values[:count], rtol=1e-12)
    assert (found.token, found.logprob) == (11, pytest.approx(float(wanted[11]), rel=1e-12))
