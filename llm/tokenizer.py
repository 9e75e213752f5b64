"""Tokenizer and chat template, which travel beside the program in a folder ``m.tokenizer``."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from etcuda.errors import CheckpointError, GenerationError

# What a folder in the Hub's format may hold of a tokenizer. ExecuTorch's runner reads tokenizer.json there too.
NAMES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def folder_of(program: pathlib.Path) -> pathlib.Path:
    """The folder of a program's tokenizer: ``m.tokenizer`` for ``m.pte``."""
    return program.with_suffix(".tokenizer")


def copy(checkpoint: pathlib.Path, program: pathlib.Path) -> list[pathlib.Path]:
    """Copies a checkpoint's tokenizer beside a program; what lay there of another goes. Returns the files."""
    folder = folder_of(program)
    for name in NAMES:
        (folder / name).unlink(missing_ok=True)
    if not (checkpoint / NAMES[0]).is_file():
        return []
    folder.mkdir(exist_ok=True)
    copied = []
    for name in NAMES:
        if (checkpoint / name).is_file():
            copied.append(pathlib.Path(shutil.copyfile(checkpoint / name, folder / name)))
    return copied


def check(checkpoint: pathlib.Path, vocab_size: int) -> None:
    """Checks that a checkpoint's tokenizer, if it has one, and its model agree.

    Raises:
        CheckpointError: the tokenizer is damaged, or has ids that the model does not.
    """
    if not (checkpoint / NAMES[0]).is_file():
        return
    try:
        made = Tokenizer(checkpoint)
    except GenerationError as error:
        raise CheckpointError(str(error)) from error
    if made.size > vocab_size:
        raise CheckpointError(
            f"{checkpoint / NAMES[0]}: expected ids below the vocab_size {vocab_size} of config.json, got ids up to "
            f"{made.size - 1}. The tokenizer is of another model, or its tokens were added and the model not resized."
        )


class Tokenizer:
    """Text to ids and back.

    Args:
        folder: with ``tokenizer.json``.

    Raises:
        GenerationError: there is none, or it is damaged.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        from tokenizers import Tokenizer as Fast

        path = folder / NAMES[0]
        if not path.is_file():
            raise GenerationError(
                f"{path}: expected the program's tokenizer, got no such file. Copy it there, or pass token ids."
            )
        try:
            self._fast = Fast.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception.
            raise GenerationError(f"{path}: expected a tokenizer, got: {error}. Copy it again.") from error
        self._config = _json(folder / "tokenizer_config.json") | _json(folder / "special_tokens_map.json")
        self._template = _template(folder, self._config)

    @property
    def size(self) -> int:
        """One more than the greatest id, but for tokens that were added: models of text have none for images."""
        return max(self._fast.get_vocab(with_added_tokens=False).values(), default=-1) + 1

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Ids of a text; with ``special`` those that the tokenizer sets around it, such as the beginning's."""
        ids: list[int] = self._fast.encode(text, add_special_tokens=special).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, without special tokens; bytes that are no UTF-8 yet are replacement characters at its end."""
        text: str = self._fast.decode(list(ids), skip_special_tokens=True)
        return text

    def id_of(self, token: str) -> int | None:
        """The id of a token, or ``None``."""
        found: int | None = self._fast.token_to_id(token)
        return found

    def render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> str:
        """A conversation by the chat template, as transformers renders it.

        Args:
            messages: each with ``role`` and ``content``.
            add_generation_prompt: end with what begins the answer.

        Raises:
            GenerationError: there is no template, or it refuses the messages, such as for an unknown role.
        """
        import jinja2
        from transformers.utils.chat_template_utils import render_jinja_template

        if self._template is None:
            raise GenerationError(
                "chat: expected a chat template in tokenizer_config.json or chat_template.jinja, got none. Pass a "
                "prompt, or add the template to the tokenizer's folder and export again."
            )
        tokens = {name: _text(value) for name, value in self._config.items() if name.endswith("_token") and value}
        try:
            rendered, _ = render_jinja_template(
                conversations=[list(messages)],
                chat_template=self._template,
                add_generation_prompt=add_generation_prompt,
                **tokens,
            )
        except jinja2.TemplateError as error:
            roles = ", ".join(str(message.get("role")) for message in messages)
            raise GenerationError(
                f"chat: expected messages that the chat template takes, got roles {roles}: {error}."
            ) from error
        text: str = rendered[0]
        return text


class TextStream:
    """Pieces of text from ids, one at a time: a piece is held back while it may end within a character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._prefix = ""

    def put(self, token: int) -> str:
        """The text that this id completes, often ""."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        if text.endswith("\ufffd"):
            return ""
        piece = text[len(self._prefix) :]
        # A later id is decoded with the last ones in front of it, for what stands between them.
        self._ids = self._ids[-_CONTEXT:]
        self._prefix = self._tokenizer.decode(self._ids)
        return piece

    def end(self) -> str:
        """What was held back."""
        piece = self._tokenizer.decode(self._ids)[len(self._prefix) :]
        self._ids, self._prefix = [], ""
        return piece


_CONTEXT = 8


def _json(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        read = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise GenerationError(f"{path}: expected JSON, got: {error}. Copy the file again.") from error
    return read if isinstance(read, dict) else {}


def _template(folder: pathlib.Path, config: Mapping[str, Any]) -> str | None:
    own = folder / "chat_template.jinja"
    if own.is_file():
        return own.read_text()
    template = config.get("chat_template")
    if isinstance(template, list):
        template = next((each["template"] for each in template if each.get("name") == "default"), None)
    return template


def _text(token: Any) -> str:
    return str(token["content"]) if isinstance(token, Mapping) else str(token)
