"""Sessions over a program in PyTorch that samples itself: penalties, ends, forks, interruptions and failures."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from etcuda.errors import GenerationError
from etcuda.llm.kept_tokens import KeptTokens
from etcuda.llm.logprobs import LogprobNotes
from etcuda.llm.model import TextModel
from etcuda.llm.program import TextProgram
from etcuda.llm.report import Report
from etcuda.llm.sampling import SamplingOptions
from etcuda.llm.step import StepModel, penalised
from etcuda.llm.text_session import TokenSession, generate_tokens
from tests.llm.architectures import VOCAB, prompt
from tests.llm.test_model import text_model

_LENGTH, _CHUNK = 64, 8


class State:
    """A session of the program below: the contents of the model's buffers."""

    def __init__(self, model: TextModel, next_token: torch.Tensor) -> None:
        self.model = model
        self.buffers = [torch.zeros_like(buffer) for buffer in model.cache.buffers()] + [torch.zeros_like(next_token)]

    def fork(self) -> State:
        return copy.deepcopy(self, {id(self.model): self.model})


class EagerProgram(TextProgram):
    """A program that PyTorch runs, with ``slots`` recurrent states, if it has such. ``fails_at`` is a position at which
    steps fail, ``steps`` those that were run."""

    def __init__(self, name: str, slots: int = 1) -> None:
        self.model, _ = text_model(name, slots=slots)
        self.model.cache.keep_history(_LENGTH)
        self.stepper = StepModel(self.model).eval()
        self.chunk, self.max_seq_len, self.vocab_size = _CHUNK, _LENGTH, VOCAB
        self.max_rollback = _CHUNK - 1 if any(each.is_ring for each in self.model.cache.layers) else None
        if self.model.cache.recurrent.layers:
            self.max_rollback, self.state_slots = 0, slots if slots > 1 else 0
        self.eos_ids, self.bos_id, self.has_step = frozenset(), None, True
        self.fails_at: int | None = None
        self.steps: list[int] = []

    def session(self) -> TokenSession:
        return TokenSession(self, State(self.model, self.stepper.next_token))

    def _execute(self, session: Any, method: str, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        with torch.no_grad():
            own = [*self.model.cache.buffers(), self.stepper.next_token]
            for buffer, kept in zip(own, session.buffers, strict=True):
                buffer.copy_(kept)
            if method == "generate_step":
                self.steps.append(int(inputs[1]))
                if self.fails_at == int(inputs[1]):
                    raise GenerationError("the program failed: no memory")
                out: torch.Tensor = self.stepper(*inputs)
            else:
                out = self.model(*inputs)
            for buffer, kept in zip(own, session.buffers, strict=True):
                kept.copy_(buffer)
            return out


def answer(
    program: TextProgram, session: TokenSession, tokens: list[int], count: int, **more: Any
) -> tuple[list[int], Report]:
    report = Report()
    ends, allow = frozenset(more.pop("ends", ())), more.pop("allow", None)
    options = SamplingOptions(**more)
    made = generate_tokens(session, program, tokens, options, count, ends, report, lambda: False, allow=allow)
    return list(made), report


@pytest.fixture(scope="module")
def programs() -> dict[str, EagerProgram]:
    return {name: EagerProgram(name) for name in ("llama", "gemma3_text")}


@pytest.fixture(params=["llama", "gemma3_text"])
def program(request: pytest.FixtureRequest, programs: dict[str, EagerProgram]) -> EagerProgram:
    found = programs[request.param]
    found.fails_at, found.has_step, found.steps = None, True, []
    return found


def by_host(program: EagerProgram, tokens: list[int], count: int, penalty: float = 1.0) -> list[int]:
    program.has_step = False
    made, _ = answer(program, program.session(), tokens, count, repetition_penalty=penalty)
    program.has_step = True
    return made


@pytest.mark.parametrize("penalty", [1.0, 1.6])
def test_steps_give_the_hosts_tokens(program: EagerProgram, penalty: float) -> None:
    expected = by_host(program, prompt(20), 30, penalty)
    assert expected != by_host(program, prompt(20), 30, 1.3), "the penalty changes nothing"
    session = program.session()
    got, report = answer(program, session, prompt(20), 30, repetition_penalty=penalty)
    assert got == expected
    assert (report.finish_reason, report.generated_tokens) == ("length", 30)
    assert list(session.tokens) == [*prompt(20), *got[:-1]]
    assert program.steps == list(range(19, 49)), "as many steps as tokens"


def test_the_host_draws_what_steps_do_not_know(program: EagerProgram) -> None:
    plain, _ = answer(program, program.session(), prompt(20), 12)
    program.steps = []
    token = plain[3]
    got, _ = answer(program, program.session(), prompt(20), 12, logit_bias=((token, -100.0),))
    assert program.steps == []
    assert got[:3] == plain[:3]
    assert token not in got
    notes = LogprobNotes(1)
    made = generate_tokens(
        program.session(), program, prompt(20), SamplingOptions(), 12, frozenset(plain[5:6]), Report(), lambda: False,
        notes=notes,
    )  # fmt: skip
    said = list(made)
    assert program.steps == []
    assert said == plain[: plain.index(plain[5])]
    # The token that ends the answer is not one of its.
    assert [each.token for each in notes.tokens] == said
    assert [each.top for each in notes.tokens] == [((each.token, each.logprob),) for each in notes.tokens]


def test_steps_draw_what_is_allowed(program: EagerProgram) -> None:
    """A grammar of even and odd tokens by turns; the bits of the last word are those of tokens that exist."""

    def allow(tokens: Sequence[int]) -> npt.NDArray[np.bool_]:
        return np.arange(VOCAB) % 2 == len(tokens) % 2

    asked: dict[str, Any] = {"repetition_penalty": 1.3, "allow": allow}
    got, _ = answer(program, program.session(), prompt(20), 12, **asked)
    assert [token % 2 for token in got] == [0, 1] * 6
    program.has_step = False
    expected, _ = answer(program, program.session(), prompt(20), 12, **asked)
    program.has_step = True
    assert got == expected
    last = np.arange(VOCAB) == VOCAB - 1
    assert answer(program, program.session(), prompt(20), 2, allow=lambda tokens: last)[0] == [VOCAB - 1] * 2
    for wrong, message in (
        (np.zeros(VOCAB, dtype=bool), "one token or more that may follow 0 tokens of the answer, got none"),
        (np.ones(VOCAB), rf"an array of {VOCAB} bools, one a token, got float64 of shape \[{VOCAB}\]"),
        (np.ones(VOCAB - 1, dtype=bool), rf".* got bool of shape \[{VOCAB - 1}\]"),
    ):
        for program.has_step in (False, True):
            with pytest.raises(GenerationError, match=rf"allow: expected {message}"):
                answer(program, program.session(), prompt(20), 2, allow=lambda tokens, wrong=wrong: wrong)


def test_an_end_is_not_appended(program: EagerProgram) -> None:
    made = by_host(program, prompt(20), 30)
    end = next(token for index, token in enumerate(made) if index > 5 and token not in made[:index])
    count = made.index(end)
    session = program.session()
    got, report = answer(program, session, prompt(20), 30, ends=[end])
    assert (got, report.finish_reason) == (made[:count], "stop")
    assert list(session.tokens) == [*prompt(20), *got]
    assert program.steps[-1] == 19 + count
    # The conversation goes on with another token in the place of the end, as if that had never been.
    tokens = [*session.tokens, *prompt(3, seed=7)]
    again, report = answer(program, session, tokens, 12, repetition_penalty=1.4)
    assert again == by_host(program, tokens, 12, 1.4)
    assert report.reused_tokens == len(tokens) - 3


def test_a_penalty_forgets_what_was_taken_back(program: EagerProgram) -> None:
    session = program.session()
    tokens = prompt(20)
    answer(program, session, [*tokens, *prompt(5, seed=3)], 3, repetition_penalty=1.6)
    got, report = answer(program, session, tokens, 20, repetition_penalty=1.6)
    assert report.reused_tokens in (19, 0)
    assert got == by_host(program, tokens, 20, 1.6)
    other, _ = answer(program, session, prompt(9, seed=5), 12, repetition_penalty=1.6)
    assert other == by_host(program, prompt(9, seed=5), 12, 1.6)


def test_a_fork_in_the_middle_of_an_answer(program: EagerProgram) -> None:
    session, tokens = program.session(), prompt(20)
    expected = by_host(program, tokens, 20, 1.4)
    made = generate_tokens(
        session, program, tokens, SamplingOptions(repetition_penalty=1.4), 20, frozenset(), Report(), lambda: False
    )
    first = [next(made) for _ in range(6)]
    fork = session.fork()
    assert fork.tokens == session.tokens
    both = [*first, *made]
    rest, _ = answer(program, fork, [*tokens, *first], 14, repetition_penalty=1.4)
    assert both == expected
    assert rest == expected[6:]


def test_an_answer_that_another_prompt_interrupts_says_so(program: EagerProgram) -> None:
    session = program.session()
    made = generate_tokens(session, program, prompt(20), SamplingOptions(), 20, frozenset(), Report(), lambda: False)
    next(made)
    got, _ = answer(program, session, prompt(9, seed=2), 5)
    assert got == by_host(program, prompt(9, seed=2), 5)
    with pytest.raises(GenerationError, match=r"the answer: expected its session to be left alone until it ends"):
        next(made)


def test_a_session_goes_on_after_a_step_that_failed(program: EagerProgram) -> None:
    session = program.session()
    program.fails_at = 23
    made = generate_tokens(session, program, prompt(20), SamplingOptions(), 20, frozenset(), Report(), lambda: False)
    assert [next(made) for _ in range(4)] == by_host(program, prompt(20), 4)
    with pytest.raises(GenerationError, match="the program failed: no memory"):
        next(made)
    program.fails_at = None
    got, _ = answer(program, session, prompt(20), 20)
    assert got == by_host(program, prompt(20), 20)


def test_a_ring_counts_what_was_ever_written(programs: dict[str, EagerProgram]) -> None:
    program = programs["gemma3_text"]
    session, tokens = program.session(), prompt(40)
    session.prefill(tokens, lambda: False)
    session.prefill([*tokens[:35], 3], lambda: False)
    # Seven tokens back of 40 is the most; 33 is within seven of 36, but not of what the ring has seen.
    assert session.reusable([*tokens[:33], 4]) == 33
    assert session.reusable([*tokens[:32], 4]) == 0
    got = session.prefill([*tokens[:32], 4], lambda: False)
    expected = program.session().prefill([*tokens[:32], 4], lambda: False)
    assert got is not None
    assert expected is not None
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def decoded(program: EagerProgram, session: TokenSession, tokens: list[int]) -> np.ndarray[Any, Any]:
    logits = [session.decode(token) for token in tokens]
    assert len(logits) > 0
    return logits[-1]


# By how many tokens a session may be taken back: a prompt of 20 tokens, 12 that were decoded.
@pytest.mark.parametrize(
    ("name", "slots", "most"),
    [
        ("llama", 1, 32),
        ("gemma3_text", 1, 7),
        ("qwen3_next", 5, 4),
        ("falcon_h1", 16, 12),
        ("mamba2", 3, 2),
        ("qwen3_5_moe_text", 1, 0),
    ],
)
def test_a_session_is_taken_back(name: str, slots: int, most: int) -> None:
    program = EagerProgram(name, slots)
    tokens, more = prompt(20), prompt(12, seed=4)
    whole = [*tokens, *more]
    session = program.session()
    session.prefill(tokens, lambda: False)
    decoded(program, session, more)
    for count in sorted({0, 1, min(most, 3), most} - {32}):
        if count > most:
            continue
        fork = session.fork()
        fork.rollback(count)
        assert list(fork.tokens) == whole[: 32 - count]
        fresh = program.session()
        fresh.prefill(fork.tokens, lambda: False)
        np.testing.assert_allclose(
            decoded(program, fork, [9, 11, 5]), decoded(program, fresh, [9, 11, 5]), rtol=1e-3, atol=1e-3
        )
        # Of a prompt that shares as much with the session, the rest alone is computed.
        assert session.reusable([*whole[: 32 - count], 400]) == 32 - count
    if most < 31:
        assert session.reusable([*whole[: 32 - most - 1], 400]) == 0
    session.rollback(32)
    assert session.tokens == ()
    got = session.prefill(tokens, lambda: False)
    np.testing.assert_allclose(got, program.session().prefill(tokens, lambda: False), rtol=1e-4, atol=1e-4)


def test_what_was_taken_back_is_gone() -> None:
    """A ring counts from the longest that the sequence was, and a prompt's states are not kept."""
    program = EagerProgram("qwen3_next", 5)
    session = program.session()
    session.prefill(prompt(20), lambda: False)
    decoded(program, session, prompt(6, seed=4))
    session.rollback(3)
    with pytest.raises(GenerationError, match="rollback: expected at most 1 tokens, got 2"):
        session.rollback(2)
    session.rollback(1)
    session.prefill([*session.tokens, *prompt(3, seed=5)], lambda: False)
    with pytest.raises(GenerationError, match="expected at most 0 tokens, got 1: recurrent states are kept of the la"):
        session.rollback(1)
    decoded(program, session, [7, 8])
    session.rollback(2)


@pytest.mark.parametrize(
    ("name", "slots", "count", "message"),
    [
        ("llama", 1, -1, "rollback: expected 0 to the 32 tokens that the session holds, got -1"),
        ("llama", 1, 33, "rollback: expected 0 to the 32 tokens that the session holds, got 33"),
        ("gemma3_text", 1, 8, "expected at most 7 tokens, got 8: the rings of sliding layers have lost the keys"),
        ("falcon_h1", 1, 1, "more tokens than the last, got 1 tokens to take back. Export with --rollback 15"),
        ("falcon_h1", 4, 4, "expected at most 3 tokens, got 4: recurrent states are kept of the last 4 tokens"),
        ("falcon_h1", 16, 13, "expected at most 12 tokens, got 13: .* of a prompt's call behind its last token alone"),
    ],
)
def test_what_cannot_be_taken_back(name: str, slots: int, count: int, message: str) -> None:
    session = KeptTokens(*{"llama": (None, 0), "gemma3_text": (7, 0)}.get(name, (0, slots if slots > 1 else 0)))
    session.note(20, each=False)
    for length in range(21, 33):
        session.note(length, each=True)
    with pytest.raises(GenerationError, match=message):
        session.check(count, 32)


def test_what_is_penalised() -> None:
    logits = torch.tensor([1.0, -1.0, 2.0, -2.0, 0.5])
    history = torch.tensor([3, 0, 3, 2, 1])
    got = penalised(logits, history, torch.tensor([2]), torch.tensor(2.0))
    assert got.tolist() == [0.5, -1.0, 2.0, -4.0, 0.5]
    assert penalised(logits, history, torch.tensor([4]), torch.tensor(1.0)).tolist() == logits.tolist()
