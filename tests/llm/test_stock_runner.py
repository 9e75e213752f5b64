"""ExecuTorch's own text runner runs the program as it is."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable

import pytest

import etcuda.runtime  # noqa: F401  registers the delegate
from etcuda import llm
from tests.llm.architectures import BOS, VOCAB
from tests.llm.conftest import Exported

pytest.importorskip("executorch.extension.llm.runner", reason="the wheel has no text runner")


from examples.stock_runner import generate


def ascii_tokenizer(folder: pathlib.Path) -> None:
    """Ids of which each alone is text: the runner's binding takes no piece that is a part of a character."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = ["Ġ", *map(chr, range(33, 127))]
    vocab = {"<pad>": 0, "<s>": BOS, "</s>": 2}
    vocab |= {letter: 3 + place for place, letter in enumerate(letters)}
    vocab |= {f"word{number};": number for number in range(len(vocab), VOCAB)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.mark.slow
def test_greedy_text_is_ours(program: Callable[[str], Exported], tmp_path: pathlib.Path) -> None:
    path, text = program("llama").path, "Shall I compare thee to a summer's day?"
    ascii_tokenizer(tmp_path)
    model = llm.LanguageModel(llm.load(path).program, tmp_path)
    ours = model.generate(model.tokenizer.encode(text, special=False), max_new_tokens=12, ignore_eos=True)
    expected = ours.text()
    # Longer than a chunk of prefill.
    assert ours.report.prompt_tokens > 2 * model.program.chunk
    pieces: list[str] = []
    theirs = generate(path, text, 12, tokenizer=tmp_path, take=pieces.append)
    assert theirs.removesuffix("</s>") == expected
    assert "".join(pieces) == theirs
    assert len(pieces) > 3
