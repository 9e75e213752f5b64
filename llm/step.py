"""The method ``generate_step``: decoding with sampling on the device, which keeps its token for the next call."""

from __future__ import annotations

import torch
from torch import Tensor

from etcuda.kernels.random.uniform import open_unit
from etcuda.llm.model import TextModel

# Logits that are so far below the greatest have no probability in fp32.
_FAR = 100.0
# A threshold is searched in so many parts of an interval, so many times: to 100 * 64 ** -6, finer than fp32 next to 1.
_PARTS, _LEVELS = 64, 6


class StepModel(TextModel):
    """A text model whose call samples. It shares weights, caches and their names with ``model``.

    Args:
        model: whose ``prefill`` fills the caches.
    """

    next_token: Tensor

    def __init__(self, model: TextModel) -> None:
        torch.nn.Module.__init__(self)
        self.model, self.cache = model.model, model.cache
        self.num_layers, self._all_logits = model.num_layers, False
        self.vocab_size = int(model.model.config.vocab_size)
        self.register_buffer("next_token", torch.zeros(1, 1, dtype=torch.long))

    def forward(  # type: ignore[override]
        self, token: Tensor, position: Tensor, settings: Tensor, top_k: Tensor, seed: Tensor, allowed: Tensor
    ) -> Tensor:
        """Appends a token to the caches and draws the one that follows.

        Args:
            token: [1, 1] int64; -1 for the one that the call before drew.
            position: [1] int64, of the token.
            settings: [4] float32: temperature (0 takes the likeliest), top_p (1 for all), min_p (0 for all) and the
                repetition penalty (1 for none), of all tokens up to ``position``.
            top_k: [1] int64; 0 for all.
            seed: [1] int64, 0 or more. The random numbers depend on it and on the position alone.
            allowed: [ceil(vocab_size / 32)] int32, a bit a token, the lowest first: those that may be drawn.

        Returns:
            token [1] int64.
        """
        used = torch.where(token >= 0, token, self.next_token)
        logits = super().forward(used, position)[0].float()
        assert self.cache.history is not None
        logits = penalised(logits, self.cache.history, position, settings[3])
        drawn = draw(logits, settings[:3], top_k, torch.cat((seed, position)), allowed)
        self.next_token.copy_(drawn.reshape(1, 1))
        return drawn

    def example(self) -> tuple[Tensor, ...]:
        """Arguments of ``forward`` for a trace."""
        return (
            torch.zeros(1, 1, dtype=torch.long),
            torch.zeros(1, dtype=torch.long),
            torch.tensor([1.0, 0.9, 0.1, 1.1]),
            torch.full((1,), 40, dtype=torch.long),
            torch.zeros(1, dtype=torch.long),
            torch.full((-(-self.vocab_size // 32),), -1, dtype=torch.int32),
        )


def penalised(logits: Tensor, history: Tensor, position: Tensor, penalty: Tensor) -> Tensor:
    """Logits of tokens that occurred divided by the penalty if they are positive, multiplied otherwise.

    Which tokens those are is read from the sequence itself, so that it is right after the sequence was taken back.

    Args:
        logits: [vocab_size] float32.
        history: [max_seq_len] int64, the token at each position.
        position: [1] int64, the last one that counts.
        penalty: a float32 number.

    Returns:
        [vocab_size] float32.
    """
    vocab_size = logits.shape[0]
    counts = torch.arange(history.shape[0], device=history.device) <= position
    # Those that do not count are put behind the vocabulary.
    tokens = torch.where(counts, history, vocab_size)
    seen = torch.zeros(vocab_size + 1, device=logits.device)
    seen = seen.index_put((tokens,), torch.ones(1, device=logits.device))[:vocab_size] > 0
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def draw(logits: Tensor, settings: Tensor, top_k: Tensor, state: Tensor, allowed: Tensor) -> Tensor:
    """One token, by the race ``argmax(logits / temperature + gumbel)`` of those that the filters leave.

    Tokens whose logits are equal to the last one's that stays, stay too.

    Args:
        logits: [vocab_size] float32.
        settings: [3] float32: temperature, top_p, min_p.
        top_k: [1] int64.
        state: [2] int64, the seed and the offset of the random numbers.
        allowed: [ceil(vocab_size / 32)] int32.

    Returns:
        [1] int64.
    """
    vocab_size = logits.shape[0]
    temperature, top_p, min_p = settings.unbind()
    is_warm = temperature > 0
    bit = (allowed.unsqueeze(1) >> torch.arange(32, device=allowed.device, dtype=torch.int32)) & 1
    may = bit.reshape(-1)[:vocab_size] != 0
    values = torch.where(may, logits / torch.where(is_warm, temperature, 1.0), -torch.inf)
    # How far a token is below the likeliest one: 0 and more.
    below = values.amax() - values
    near = below.clamp(max=_FAR)
    weights = torch.where(may, torch.exp(-near), 0.0)
    count = torch.where(top_k > 0, top_k, vocab_size).to(torch.float32)
    limit = _threshold(near, may.to(torch.float32), count)
    weights = torch.where(near <= limit, weights, 0.0)
    limit = torch.minimum(limit, _threshold(near, weights, top_p * weights.sum()))
    keep = may & (near <= limit) & (below <= -torch.log(min_p))
    gumbel = -torch.log(-torch.log(open_unit(state, 0, [vocab_size])))
    scores = torch.where(keep, torch.where(is_warm, gumbel, 0.0) - below, -torch.inf)
    return scores.argmax(dim=0, keepdim=True)


def _threshold(near: Tensor, weights: Tensor, wanted: Tensor) -> Tensor:
    """The least number [1] so that the weights of those that are not above it reach what is wanted; ``_FAR`` if all
    together do not."""
    low = torch.full((1,), -1.0, device=near.device)
    high = torch.full((1,), _FAR, device=near.device)
    parts = torch.arange(1, _PARTS + 1, device=near.device, dtype=torch.float32) / _PARTS
    for _ in range(_LEVELS):
        tried = low + (high - low) * parts
        reached = torch.where(near.unsqueeze(0) <= tried.unsqueeze(1), weights, 0.0).sum(dim=1) >= wanted
        high = torch.minimum(high, torch.where(reached, tried, _FAR).amin(dim=0, keepdim=True))
        low = torch.maximum(low, torch.where(reached, -1.0, tried).amax(dim=0, keepdim=True))
    return high
