"""``load`` and what it returns: text from a program."""

from __future__ import annotations

import operator
import os
import pathlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from etcuda.errors import GenerationError
from etcuda.llm.logprobs import LogprobNotes, TokenLogprobs
from etcuda.llm.program import TextProgram
from etcuda.llm.report import Report
from etcuda.llm.sampling import Allow, SamplingOptions
from etcuda.llm.speculative import check_drafts, drawn_with_drafts
from etcuda.llm.text_session import TokenSession, check_request, generate_tokens, room
from etcuda.llm.tokenizer import TextStream, Tokenizer, folder_of

if TYPE_CHECKING:
    from etcuda.llm.draft import Drafter

Messages = Sequence[Mapping[str, Any]]
# Tokens that end an answer in chat templates whose generation_config names none.
_TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>")
# Of GPT-OSS, whose answer is several messages: <|end|> ends each but the last.
_ANSWER_ENDS = ("<|return|>", "<|call|>")


class Generation:
    """An answer that is being made: iterate to get its pieces of text.

    Attributes:
        tokens: the answer's tokens so far.
        report: what it takes; whole at the end.
        logprobs: of each of ``tokens``, if they were asked for.
    """

    def __init__(
        self,
        pieces: Iterator[str],
        tokens: list[int],
        report: Report,
        cancelled: threading.Event,
        logprobs: list[TokenLogprobs],
    ) -> None:
        self._pieces = pieces
        self._cancelled = cancelled
        self.tokens = tokens
        self.report = report
        self.logprobs = logprobs

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        while not (piece := next(self._pieces)):
            pass
        return piece

    def steps(self) -> Iterator[str]:
        """One piece for each call of the program, "" where a token completes no text: for answers that take turns."""
        return self._pieces

    def cancel(self) -> None:
        """Ends the answer after the step that is being computed. May be called from any thread."""
        self._cancelled.set()

    def text(self) -> str:
        """The rest of the answer, whole."""
        return "".join(self)


class TextSession:
    """A conversation: what was said before is not computed again. May be used from one thread at a time."""

    def __init__(self, model: LanguageModel, tokens: TokenSession | None = None) -> None:
        self._model = model
        self._session = TokenSession(model.program) if tokens is None else tokens

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens in the session's caches."""
        return self._session.tokens

    def fork(self) -> TextSession:
        """A session that goes on from here by itself."""
        return TextSession(self._model, self._session.fork())

    def rollback(self, count: int) -> None:
        """Takes back the last ``count`` tokens of ``tokens``; nothing is computed or copied.

        Layers that keep all tokens allow any number, rings of sliding layers ``chunk - 1``, counted from the longest
        that the sequence was; recurrent layers what ``etcuda export --rollback`` says, behind the end of the last
        prompt. All tokens can always be taken back.

        Raises:
            GenerationError: the session holds fewer tokens, or its caches have lost what goes on from there.
        """
        self._session.rollback(count)

    def generate(
        self,
        prompt: str | Sequence[int],
        options: SamplingOptions | None = None,
        *,
        max_new_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        ignore_eos: bool = False,
        drafter: Drafter | None = None,
        allow: Allow | None = None,
        logprobs: int | None = None,
    ) -> Generation:
        """Continues a prompt; what it begins with and the session holds is not computed again.

        Args:
            prompt: text or token ids, all of it, with what the session holds.
            options: how tokens are chosen; ``None`` is greedy.
            max_new_tokens: most tokens; ``None`` for as many as the cache holds.
            stop: texts that end the answer, or one; they are not given.
            ignore_eos: go on behind a token that ends the answer.
            drafter: guesses tokens, of which the program verifies several at once; the answer is the same.
            allow: is given the answer's tokens before each next one, and returns which tokens may follow, [vocab_size]
                of bool: a grammar. ``None`` allows all.
            logprobs: how many of the likeliest tokens to note beside each of the answer's, with what the logits say of
                them; ``None`` for nothing. The host draws then, also of programs that can on the device.

        Raises:
            GenerationError: the prompt or ``max_new_tokens`` does not fit, or a text is given and there is no
                tokenizer; what happens later is raised by the iteration.
        """
        ids = self._model.encode(prompt) if isinstance(prompt, str) else _ids(prompt)
        return self._start(
            ids, options or SamplingOptions(), max_new_tokens, _texts(stop), ignore_eos, drafter, allow, logprobs
        )

    def chat(
        self,
        messages: Messages,
        options: SamplingOptions | None = None,
        *,
        max_new_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        drafter: Drafter | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        allow: Allow | None = None,
        logprobs: int | None = None,
    ) -> Generation:
        """Answers a conversation.

        Args:
            messages: each with ``role`` and ``content``, as the tokenizer's chat template takes them.
            tools: functions that the model may ask for, as JSON schemas, where the template knows of them; what it
                says is for the caller to read.
            options: and the rest as of ``generate``.

        Raises:
            GenerationError: there is no template, or it refuses the messages; and as ``generate``.
        """
        rendered = self._model.tokenizer.render(messages, tools=tools)
        # The template writes the tokens that begin a text itself.
        ids = self._model.tokenizer.encode(rendered, special=False)
        return self._start(
            ids, options or SamplingOptions(), max_new_tokens, _texts(stop), False, drafter, allow, logprobs
        )

    def _start(
        self,
        ids: list[int],
        options: SamplingOptions,
        max_new_tokens: int | None,
        stop: tuple[str, ...],
        no_end: bool,
        drafter: Drafter | None,
        allow: Allow | None,
        logprobs: int | None,
    ) -> Generation:
        if any(not isinstance(text, str) or not text for text in stop):
            raise GenerationError(f"stop: expected texts that are not empty, got {stop!r}. Leave it out.")
        if stop and not self._model.has_tokenizer:
            raise GenerationError("stop: expected a program with a tokenizer for texts that end the answer, got none.")
        program = self._model.program
        check_request(program, ids, max_new_tokens)
        if logprobs is not None and not 0 <= logprobs <= program.vocab_size:
            raise GenerationError(
                f"logprobs: expected 0 to the {program.vocab_size} tokens of the vocabulary, got {logprobs}."
            )
        if drafter is not None:
            check_drafts(program)
            if logprobs is not None:
                raise GenerationError("logprobs: expected no drafter with it, got one. Leave one of them out.")
        notes = None if logprobs is None else LogprobNotes(logprobs)
        report, cancelled, tokens = (
            Report(load_seconds=program.load_seconds, limit=program.limit(len(ids))),
            threading.Event(),
            list[int](),
        )
        drawn = None
        if drafter is not None:
            count = room(program, ids) if max_new_tokens is None else max_new_tokens
            drawn = drawn_with_drafts(
                self._session, program, ids, options, count, drafter, report, cancelled.is_set, allow
            )  # fmt: skip
        made = generate_tokens(
            self._session, program, ids, options, max_new_tokens,
            frozenset() if no_end else self._model.end_ids, report, cancelled.is_set, drawn, allow,
            notes,
        )  # fmt: skip
        pieces = self._model.pieces(made, stop, tokens, report)
        return Generation(pieces, tokens, report, cancelled, [] if notes is None else notes.tokens)


class LanguageModel:
    """A loaded program and its tokenizer.

    Args:
        program: loaded.
        tokenizer_folder: with ``tokenizer.json``, which comes before the program's own; without one, prompts are token
            ids and so are answers.
    """

    def __init__(self, program: TextProgram, tokenizer_folder: pathlib.Path) -> None:
        self.program = program
        self._folder = tokenizer_folder
        self._tokenizer: Tokenizer | None = None
        if (tokenizer_folder / "tokenizer.json").is_file():
            self._tokenizer = Tokenizer(tokenizer_folder)
        elif program.tokenizer_files:
            self._tokenizer = Tokenizer(tokenizer_folder, program.tokenizer_files)
        if self._tokenizer is not None and self._tokenizer.size > program.vocab_size:
            raise GenerationError(
                f"{tokenizer_folder}: expected ids below the program's vocabulary of {program.vocab_size}, got ids up "
                f"to {self._tokenizer.size - 1}. Put the tokenizer of this model there."
            )

    @property
    def has_tokenizer(self) -> bool:
        """Whether texts can be given."""
        return self._tokenizer is not None

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            GenerationError: the program has none.
        """
        return Tokenizer(self._folder) if self._tokenizer is None else self._tokenizer

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        if self._tokenizer is None:
            return self.program.eos_ids
        ends = [self._tokenizer.id_of(token) for token in _ANSWER_ENDS]
        if ends[0] is None:
            ends = [self._tokenizer.id_of(token) for token in _TURN_ENDS]
        return self.program.eos_ids | {token for token in ends if token is not None}

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with those that begin it.

        Raises:
            GenerationError: the program has no tokenizer.
        """
        return self.tokenizer.encode(text)

    def session(self) -> TextSession:
        """A new conversation over the same weights."""
        return TextSession(self)

    def generate(self, prompt: str | Sequence[int], options: SamplingOptions | None = None, **more: Any) -> Generation:
        """Continues a prompt in a session of its own; see ``TextSession.generate``."""
        return self.session().generate(prompt, options, **more)

    def chat(self, messages: Messages, options: SamplingOptions | None = None, **more: Any) -> Generation:
        """Answers a conversation in a session of its own; see ``TextSession.chat``."""
        return self.session().chat(messages, options, **more)

    def pieces(self, made: Iterator[int], stop: tuple[str, ...], tokens: list[int], report: Report) -> Iterator[str]:
        """A piece of text for each token as it is made, often ""; without a tokenizer, the ids with a space behind."""
        stream = None if self._tokenizer is None else TextStream(self._tokenizer)
        held = ""
        for token in made:
            tokens.append(token)
            if stream is None:
                yield f"{token} "
                continue
            held += stream.put(token)
            place = _first(held, stop)
            if place is not None:
                report.finish_reason = "stop"
                held = held[:place]
                break
            safe = len(held) - _overlap(held, stop)
            yield held[:safe]
            held = held[safe:]
        else:
            held += "" if stream is None else stream.end()
            place = _first(held, stop)
            if place is not None:
                report.finish_reason, held = "stop", held[:place]
        report.peak_bytes = _peak()
        report.limit = self.program.limit(report.prompt_tokens + max(0, report.generated_tokens - 1) / 2)
        if held:
            yield held


def load(path: str | os.PathLike[str], data_path: str | os.PathLike[str] | None = None) -> LanguageModel:
    """Loads a program that ``etcuda export`` wrote.

    Args:
        path: ``m.pte``; its tokenizer is in ``m.tokenizer`` beside it, or inside.
        data_path: its weights; ``None`` is ``m.ptd`` beside it.

    Raises:
        GenerationError: it is not there, does not load here, is no language model, or its tokenizer does not fit.
    """
    program = pathlib.Path(path)
    weights = None if data_path is None else pathlib.Path(data_path)
    return LanguageModel(TextProgram(program, weights), folder_of(program))


def _ids(prompt: Sequence[int]) -> list[int]:
    try:
        return [operator.index(token) for token in prompt]
    except TypeError as error:
        raise GenerationError(f"prompt: expected a text or token ids, got {prompt!r:.60}: {error}.") from error


def _texts(stop: str | Sequence[str]) -> tuple[str, ...]:
    return (stop,) if isinstance(stop, str) else tuple(stop)


def _first(text: str, stop: tuple[str, ...]) -> int | None:
    """Where the first of the texts that end an answer begins."""
    found = [place for place in (text.find(each) for each in stop) if place >= 0]
    return min(found) if found else None


def _overlap(text: str, stop: tuple[str, ...]) -> int:
    """Characters at the end of a text that one of ``stop`` may begin with."""
    longest = 0
    for each in stop:
        for length in range(min(len(each) - 1, len(text)), longest, -1):
            if text.endswith(each[:length]):
                longest = length
                break
    return longest


def _peak() -> int:
    import etcuda.runtime

    stats = etcuda.runtime.memory_stats()
    return max((each.peak for each in stats if each.device != "cpu"), default=sum(each.peak for each in stats))
