"""``etcuda generate m.pte -p PROMPT``."""

from __future__ import annotations

import pathlib
import signal
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from etcuda.errors import GenerationError
from etcuda.llm.extra import require_llm

if TYPE_CHECKING:
    from etcuda.llm.draft import Drafter
    from etcuda.llm.language_model import Generation, LanguageModel
    from etcuda.llm.report import Report
    from etcuda.llm.sampling import SamplingOptions


@click.command(short_help="Continue a prompt, or answer a conversation.")
@click.argument("program", type=click.Path(path_type=pathlib.Path))
@click.option("-p", "--prompt", help="the text to continue")
@click.option("-f", "--file", type=click.Path(path_type=pathlib.Path), help="a file with the text to continue")
@click.option("--ids", help="the prompt as token ids with commas between them, for programs without a tokenizer")
@click.option("--chat", is_flag=True, help="a conversation: lines of standard input, or one answer to the prompt")
@click.option("--system", help="with --chat: what the conversation begins with")
@click.option("-n", "--max-new-tokens", type=int, help="most tokens of the answer  [default: what the cache holds]")
@click.option(
    "--n", "count", type=click.IntRange(min=1), default=1, show_default=True, help="answers, each of its seed"
)
@click.option("--stop", multiple=True, help="a text that ends the answer; may be given more than once")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 takes the likeliest token")
@click.option("--top-k", type=int, default=0, show_default=True, help="likeliest tokens to draw from; 0 for all")
@click.option("--top-p", type=float, default=1.0, show_default=True, help="probability that tokens to draw from reach")
@click.option(
    "--min-p", type=float, default=0.0, show_default=True, help="least probability, relative to the likeliest"
)
@click.option("--repetition-penalty", type=float, default=1.0, show_default=True, help="1 for none")
@click.option("--seed", type=int, default=0, show_default=True, help="of the random numbers")
@click.option("--ignore-eos", is_flag=True, help="go on behind a token that ends the answer")
@click.option("--draft", help="ngram, or a smaller model's m.pte: guesses tokens that PROGRAM verifies several at once")
@click.option("--data-path", type=click.Path(path_type=pathlib.Path), help="the weights  [default: m.ptd]")
@click.option("--json", "as_json", is_flag=True, help="the figures at the end as JSON, on standard error")
@click.option("-q", "--quiet", is_flag=True, help="no figures at the end")
def command(
    program: pathlib.Path,
    prompt: str | None,
    file: pathlib.Path | None,
    ids: str | None,
    chat: bool,
    system: str | None,
    max_new_tokens: int | None,
    count: int,
    stop: tuple[str, ...],
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repetition_penalty: float,
    seed: int,
    ignore_eos: bool,
    draft: str | None,
    data_path: pathlib.Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Continue a prompt with PROGRAM, the m.pte that etcuda export wrote. The text goes to standard output as it is
    made, figures to standard error.
    """
    require_llm("generate")
    given = [value for value in (prompt, file, ids) if value is not None]
    if len(given) > 1 or (not given and not chat):
        raise GenerationError(
            f"generate: expected one of --prompt, --file and --ids, or --chat, got {len(given) or 'none'} of them."
        )
    if chat and (ids is not None or ignore_eos):
        raise GenerationError("generate: expected --chat without --ids and --ignore-eos, got both. Leave one out.")
    if system is not None and not chat:
        raise GenerationError("generate: expected --system with --chat, got it alone. Add --chat.")
    text = _read(file) if file is not None else prompt
    tokens = None if ids is None else _ids(ids)
    from etcuda.llm.language_model import load
    from etcuda.llm.sampling import SamplingOptions as Options

    settings = [Options(repetition_penalty, temperature, top_k, top_p, min_p, seed + number) for number in range(count)]
    model = load(program, data_path)
    drafter = None if draft is None else _drafter(draft, model)
    show = _Figures(as_json, quiet)
    if chat:
        _chat(model, text, system, settings, max_new_tokens, stop, drafter, show)
        return
    tokens = model.encode(text or "") if tokens is None else tokens
    for options in settings:
        made = model.generate(
            tokens, options, max_new_tokens=max_new_tokens, stop=stop, ignore_eos=ignore_eos, drafter=drafter
        )
        _stream(made)
        show(made.report)
        if made.report.finish_reason == "cancelled":
            break


def _drafter(draft: str, model: LanguageModel) -> Drafter:
    from etcuda.llm.draft import ModelDraft, NgramDraft
    from etcuda.llm.program import TextProgram

    if draft == "ngram":
        return NgramDraft()
    return ModelDraft(TextProgram(pathlib.Path(draft)), model.program.vocab_size)


def _chat(
    model: LanguageModel,
    text: str | None,
    system: str | None,
    settings: list[SamplingOptions],
    max_new_tokens: int | None,
    stop: tuple[str, ...],
    drafter: Drafter | None,
    show: _Figures,
) -> None:
    messages = [] if system is None else [{"role": "system", "content": system}]
    lines: Iterable[str] = [text] if text is not None else _lines()
    session = model.session()
    for line in lines:
        messages.append({"role": "user", "content": line})
        answer = ""
        for options in settings:
            made = session.chat(messages, options, max_new_tokens=max_new_tokens, stop=stop, drafter=drafter)
            answer = _stream(made)
            show(made.report)
        messages.append({"role": "assistant", "content": answer})


def _lines() -> Iterable[str]:
    while True:
        if sys.stdin.isatty():
            click.echo("> ", nl=False, err=True)
        try:
            line = sys.stdin.readline()
        except UnicodeDecodeError as error:
            raise GenerationError(f"standard input: expected a text in UTF-8, got: {error}. Convert it.") from error
        if not line:
            return
        if line.strip():
            yield line.rstrip("\n")


def _stream(made: Generation) -> str:
    """Writes an answer as it is made; interrupted, it ends behind the step that is computed. A second interrupt ends
    the command."""
    said = ""

    def end(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, before)
        made.cancel()

    before = signal.signal(signal.SIGINT, end)
    try:
        for piece in made:
            said += piece
            click.echo(piece, nl=False)
    finally:
        signal.signal(signal.SIGINT, before)
    click.echo()
    return said


class _Figures:
    """Writes the figures of an answer to standard error."""

    def __init__(self, as_json: bool, quiet: bool) -> None:
        self._as_json, self._quiet = as_json, quiet

    def __call__(self, report: Report) -> None:
        if self._as_json:
            click.echo(report.to_json(), err=True)
        elif not self._quiet:
            click.echo(str(report), err=True)


def _read(file: pathlib.Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise GenerationError(f"{file}: expected a text in UTF-8, got: {error}. Pass another file.") from error


def _ids(text: str) -> list[int]:
    try:
        return [int(each) for each in text.split(",")]
    except ValueError as error:
        raise GenerationError(f"--ids: expected numbers with commas between them, got {text!r}.") from error
