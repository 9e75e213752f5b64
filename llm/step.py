"""The method ``generate_step``: decoding with sampling on the device, which keeps its token for the next call."""

from __future__ import annotations

import torch
from torch import Tensor

import etcuda.kernels  # noqa: F401  registers the operator
from etcuda.kernels.sampling.configs import choose
from etcuda.kernels.sampling.problem import problem_of, refuse
from etcuda.kernels.sampling.reference import draw_token_reference
from etcuda.llm.model import TextModel


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
    """One token, as ``etcuda::draw_token`` says, also of more tokens than its kernel takes.

    Args:
        logits: [vocab_size] float32.
        settings: [3] float32: temperature, top_p, min_p.
        top_k: [1] int64.
        state: [2] int64, the seed and the offset of the random numbers.
        allowed: [ceil(vocab_size / 32)] int32.

    Returns:
        [1] int64.
    """
    problem = problem_of(logits)
    if refuse(problem) is not None:
        return draw_token_reference(logits, settings, top_k, state, allowed)
    made: Tensor = torch.ops.etcuda.draw_token(logits, settings, top_k, state, allowed, *choose(problem).to_args())
    return made
