"""The method ``verify``: a few tokens at once, with the logits behind each of them, for drafts."""

from __future__ import annotations

import torch

from etcuda.errors import CheckpointError
from etcuda.llm.model import TextModel

# One tile of rows of the attention kernels, whose keys are split among CTAs.
MOST_ROWS = 16


class VerifyModel(TextModel):
    """A text model that gives all logits. It shares weights, caches and their names with ``model``.

    Args:
        model: whose ``prefill`` fills the caches.
        rows: most tokens of a call.

    Raises:
        CheckpointError: a layer keeps fewer recurrent states than ``rows``, so that tokens cannot be taken back.
    """

    def __init__(self, model: TextModel, rows: int) -> None:
        torch.nn.Module.__init__(self)
        few = [layer for layer in model.cache.recurrent.layers if layer.slots < rows]
        if few:
            raise CheckpointError(
                f"verify_rows: expected recurrent layers that keep the states of {rows} tokens, got {len(few)} that "
                f"keep {few[0].slots}, from which a rejected draft cannot be taken back. Give TextModel slots={rows}."
            )
        self.model, self.cache = model.model, model.cache
        self.num_layers, self._all_logits = model.num_layers, True


def check_rows(rows: int, chunk: int) -> None:
    """Checks a number of rows of ``verify``.

    Raises:
        CheckpointError: it is not 0, or 2 to the least of ``MOST_ROWS`` and the chunk.
    """
    most = min(MOST_ROWS, chunk)
    if rows != 0 and not 2 <= rows <= most:
        raise CheckpointError(
            f"verify_rows: expected 0 for none, or 2 to {most}, got {rows}. Pass --verify-rows {most}."
        )


def check_rollback(rollback: int, chunk: int) -> None:
    """Checks by how many tokens sessions are to be taken back.

    Raises:
        CheckpointError: it is negative, or not less than ``MOST_ROWS`` or than the chunk, which rings are made for.
    """
    most = min(MOST_ROWS, chunk) - 1
    if not 0 <= rollback <= most:
        raise CheckpointError(f"rollback: expected 0 to {most} tokens, got {rollback}. Pass --rollback {most} or less.")


def state_slots(verify_rows: int, rollback: int) -> int:
    """States that a recurrent layer keeps: one behind each row of ``verify``, and one more than are taken back."""
    return max(verify_rows, rollback + 1)
