"""Checkpoints and programs, each made once per test run."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import ROOT, locked
from tests.llm.architectures import BOS, VOCAB, reference, save

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' + message['role']) }}{% endif %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train_tokenizer(folder: pathlib.Path) -> None:
    """A BPE tokenizer of ``VOCAB`` ids, trained on the repository's sonnets, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train([str(ROOT / "examples" / "decoder" / "sonnets.txt")], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "PreTrainedTokenizerFast"}))


@pytest.fixture(scope="session")
def checkpoint(shared_dir: pathlib.Path) -> Callable[[str], pathlib.Path]:
    """``checkpoint(architecture)`` is a folder that transformers saved, with a tokenizer."""

    def make(name: str) -> pathlib.Path:
        folder = shared_dir / f"checkpoint-{name}"
        with locked(folder):
            if not folder.exists():
                made = folder.with_suffix(".new")
                made.mkdir()
                save(name, made)
                train_tokenizer(made)
                made.rename(folder)
        return folder

    return make


@dataclasses.dataclass(frozen=True)
class Exported:
    """A program and the model that it was made of."""

    path: pathlib.Path
    model: Any


MAX_SEQ_LEN, CHUNK = 64, 16


@pytest.fixture(scope="session")
def program(shared_dir: pathlib.Path, checkpoint: Callable[[str], pathlib.Path]) -> Callable[..., Exported]:
    """``program(architecture)`` is exported for the host in fp32."""

    def export(name: str, device_sampling: bool = False, verify_rows: int = 0) -> Exported:
        from etcuda.llm.export import ExportOptions
        from etcuda.llm.export import export as export_checkpoint

        kind = f"{'-step' if device_sampling else ''}{f'-rows{verify_rows}' if verify_rows else ''}"
        path = shared_dir / f"llm-{name}{kind}.pte"
        with locked(path):
            if not path.exists():
                options = ExportOptions(
                    target="host", dtype="fp32", max_seq_len=MAX_SEQ_LEN, chunk=CHUNK, device_sampling=device_sampling,
                    verify_rows=verify_rows,
                )  # fmt: skip
                export_checkpoint(checkpoint(name), path, options)
        return Exported(path, reference(name))

    return export
