"""Tokenizer and chat template, which travel beside the program in a folder ``m.tokenizer``, or inside it."""

from __future__ import annotations

import contextlib
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etcuda.errors import CheckpointError, GenerationError, SaveError
from etcuda.files import replacing, saving

# What a folder in the Hub's format may hold of a tokenizer. ExecuTorch's runner reads tokenizer.json there too.
NAMES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def folder_of(program: pathlib.Path) -> pathlib.Path:
    """The folder of a program's tokenizer: ``m.tokenizer`` for ``m.pte``."""
    return program.with_suffix(".tokenizer")


def missing(folder: pathlib.Path) -> str:
    """Why a folder has no tokenizer; "" if it has one."""
    if (folder / NAMES[0]).is_file():
        return ""
    return f"expected {NAMES[0]} in the checkpoint, got none; prompts and answers are token ids"


def remove(program: pathlib.Path) -> None:
    """Removes the tokenizer that lies beside a program, if there is one."""
    for name in NAMES:
        (folder_of(program) / name).unlink(missing_ok=True)


def check_place(program: pathlib.Path) -> None:
    """Checks that a tokenizer can be put beside a program.

    Raises:
        SaveError: something that is no folder has its name.
    """
    folder = folder_of(program)
    if folder.exists() and not folder.is_dir():
        raise SaveError(f"{folder}: expected a folder for the tokenizer, or nothing, got a file. Move it away.")


def copy(checkpoint: pathlib.Path, program: pathlib.Path) -> list[pathlib.Path]:
    """Copies a checkpoint's tokenizer beside a program; what lay there of another goes. Returns the files.

    Raises:
        SaveError: one cannot be written; those of before are then there, each whole.
    """
    folder = folder_of(program)
    names = [name for name in NAMES if (checkpoint / name).is_file()]
    if NAMES[0] not in names:
        remove(program)
        return []
    with saving(folder):
        folder.mkdir(exist_ok=True)
        with replacing([folder / name for name in names]) as written:
            for name, new in zip(names, written, strict=True):
                shutil.copyfile(checkpoint / name, new)
        for name in set(NAMES) - set(names):
            (folder / name).unlink(missing_ok=True)
    return [folder / name for name in names]


def read(checkpoint: pathlib.Path) -> dict[str, str]:
    """The files of a checkpoint's tokenizer, by name; none without ``tokenizer.json``."""
    if not (checkpoint / NAMES[0]).is_file():
        return {}
    return {name: (checkpoint / name).read_text(encoding="utf-8") for name in NAMES if (checkpoint / name).is_file()}


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


@contextlib.contextmanager
def reading(refusal: Callable[[str], Exception]) -> Iterator[None]:
    """Turns what the package tokenizers raises in the block into ``refusal(what it says)``: bare exceptions, and panics
    of its Rust, which are no ``Exception``."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise refusal(str(error) or type(error).__name__) from error


class Tokenizer:
    """Text to ids and back.

    Args:
        folder: with ``tokenizer.json``, or what to call ``files`` by in messages.
        files: of ``read``; ``None`` reads the folder.

    Raises:
        GenerationError: there is none, or it is damaged.
    """

    def __init__(self, folder: pathlib.Path, files: Mapping[str, str] | None = None) -> None:
        from tokenizers import Tokenizer as Fast

        path = folder / NAMES[0]
        try:
            files = read(folder) if files is None else files
        except (OSError, UnicodeDecodeError) as error:
            raise GenerationError(f"{folder}: expected a tokenizer, got: {error}. Copy it again.") from error
        if NAMES[0] not in files:
            raise GenerationError(
                f"{path}: expected the program's tokenizer, got no such file. Copy it there, or pass token ids."
            )
        with reading(lambda said: GenerationError(f"{path}: expected a tokenizer, got: {said}. Copy it again.")):
            self._fast = Fast.from_str(files[NAMES[0]])
        self._config = _json(folder, files, "tokenizer_config.json") | _json(folder, files, "special_tokens_map.json")
        self._template = _template(files, self._config, "default")
        self._tool_template = _template(files, self._config, "tool_use") or self._template

    @property
    def size(self) -> int:
        """One more than the greatest id, but for tokens that were added: models of text have none for images."""
        return max(self._fast.get_vocab(with_added_tokens=False).values(), default=-1) + 1

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Ids of a text; with ``special`` those that the tokenizer sets around it, such as the beginning's.

        Raises:
            GenerationError: it has halves of characters, which UTF-8 does not know.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise GenerationError(
                f"prompt: expected a text of whole characters, got {text[error.start]!a} at place {error.start}, half "
                "of one or a byte that is not UTF-8. Decode it as what it is."
            ) from error
        ids: list[int] = self._fast.encode(text, add_special_tokens=special).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, without special tokens; bytes that are no UTF-8 yet are replacement characters at its end."""
        text: str = self._fast.decode(list(ids), skip_special_tokens=True)
        return text

    def text_of(self, token: int) -> str:
        """The text of one token as it stands within others; of a special one its name, of a part of a character a
        replacement character."""
        # What comes behind the same token once: the first of a text may lose its space.
        once = self.decode([token])
        text = self.decode([token, token])[len(once) :]
        return text or self._fast.id_to_token(token) or ""

    def id_of(self, token: str) -> int | None:
        """The id of a token, or ``None``."""
        found: int | None = self._fast.token_to_id(token)
        return found

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        """A conversation by the chat template, as transformers renders it.

        Args:
            messages: each with ``role`` and ``content``.
            add_generation_prompt: end with what begins the answer.
            tools: functions that may be asked for, as JSON schemas.

        Raises:
            GenerationError: there is no template, or it refuses the messages, such as for an unknown role.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        template = self._tool_template if tools else self._template
        if template is None:
            raise GenerationError(
                "chat: expected a chat template in tokenizer_config.json or chat_template.jinja, got none. Pass a "
                "prompt, or add the template to the tokenizer's folder and export again."
            )
        if tools and "tools" not in template:
            raise GenerationError(
                "tools: expected a chat template that knows of tools, got one that does not name them. Leave them out."
            )
        wrong = [each for each in messages if not isinstance(each, Mapping) or not isinstance(each.get("role"), str)]
        if wrong or isinstance(messages, Mapping):
            raise GenerationError(
                "chat: expected a list of messages, each an object with role and content, got "
                f"{wrong[0] if wrong else messages!r}."
            )
        tokens = {name: _text(value) for name, value in self._config.items() if name.endswith("_token") and value}
        try:
            rendered, _ = render_jinja_template(
                conversations=[list(messages)],
                chat_template=template,
                tools=list(tools) or None,
                add_generation_prompt=add_generation_prompt,
                **tokens,
            )
        except Exception as error:  # A template is a program of others', and raises what it likes.
            roles = ", ".join(message["role"] for message in messages)
            raise GenerationError(
                f"chat: expected messages that the chat template takes, got roles {roles}: "
                f"{str(error) or type(error).__name__}."
            ) from error
        text: str = rendered[0]
        return text


class TextStream:
    """Pieces of text from ids, one at a time: what may be the beginning of a character is held back."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # The last ids, and what was given of their text.
        self._ids: list[int] = []
        self._given = ""
        # How many of the ids were there whenever their text was whole: between two characters, that is.
        self._whole = [0]

    def put(self, token: int) -> str:
        """The text that this id completes, often ""."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        if not text.startswith(self._given):
            # Byte tokens: a character that is not whole makes replacement characters of the whole ones before it.
            if len(self._ids) - self._whole[-1] < _MOST_BYTES:
                return ""
            # No character has more bytes, so these are none.
            self._start(self._whole[-1], "")
            text = self._tokenizer.decode(self._ids)
        open_ = min(len(text) - len(text.rstrip(_REPLACED)), _MOST_BYTES - 1, len(text) - len(self._given))
        end = len(text) - open_
        piece, self._given = text[len(self._given) : end], text[:end]
        if not open_:
            self._whole.append(len(self._ids))
        if len(self._ids) > 2 * _CONTEXT:
            self._forget(open_)
        return piece

    def end(self) -> str:
        """What was held back."""
        text = self._tokenizer.decode(self._ids)
        if not text.startswith(self._given):
            self._start(self._whole[-1], "")
            text = self._tokenizer.decode(self._ids)
        piece = text[len(self._given) :]
        self._ids, self._given, self._whole = [], "", [0]
        return piece

    def _forget(self, open_: int) -> None:
        """Drops ids, so that a token's costs do not grow. The last ones stay in front of the next, for what stands
        between them."""
        start = max((each for each in self._whole if each <= len(self._ids) - _CONTEXT), default=0)
        if start == 0 and open_ == _MOST_BYTES - 1:
            start = len(self._ids) - _CONTEXT  # Bytes that are no characters may be parted anywhere.
        text = self._tokenizer.decode(self._ids[start:])
        given = text[: len(text) - open_]
        # Of ids without text, special ones, none are dropped: those before say whether a space follows.
        if start and given and text.endswith(_REPLACED * open_):
            self._start(start, given)

    def _start(self, start: int, given: str) -> None:
        self._ids, self._given = self._ids[start:], given
        self._whole = [each - start for each in self._whole if each >= start] or [0]


_REPLACED = "\ufffd"  # For bytes that are no character, or none yet.
_MOST_BYTES = 4  # Of a character.
_CONTEXT = 8


def _json(folder: pathlib.Path, files: Mapping[str, str], name: str) -> dict[str, Any]:
    try:
        found = json.loads(files.get(name, "{}"))
    except (ValueError, RecursionError) as error:
        raise GenerationError(f"{folder / name}: expected JSON, got: {error}. Copy the file again.") from error
    if not isinstance(found, dict):
        raise GenerationError(
            f"{folder / name}: expected a JSON object, got a {type(found).__name__}. Copy the file again."
        )
    return found


def _template(files: Mapping[str, str], config: Mapping[str, Any], wanted: str) -> str | None:
    """The template of a name, where there are several."""
    if "chat_template.jinja" in files:
        return files["chat_template.jinja"]
    template = config.get("chat_template")
    if isinstance(template, list):
        if not all(isinstance(each, Mapping) for each in template):
            raise _no_template(template)
        template = next((each.get("template") for each in template if each.get("name") == wanted), None)
    if template is not None and not isinstance(template, str):
        raise _no_template(template)
    return template


def _no_template(got: Any) -> GenerationError:
    return GenerationError(
        "tokenizer_config.json: chat_template: expected a text, or a list of objects with name and template, got "
        f"{got!s:.80}. Copy the file again."
    )


def _text(token: Any) -> str:
    return str(token["content"]) if isinstance(token, Mapping) else str(token)
