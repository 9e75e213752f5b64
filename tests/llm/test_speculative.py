"""Decoding by drafts: the answer is the one without, whatever is guessed."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from etcuda.errors import CheckpointError, GenerationError
from etcuda.llm.draft import Drafter, ModelDraft, NgramDraft
from etcuda.llm.recurrent_cache import RecurrentLayer
from etcuda.llm.report import Report
from etcuda.llm.sampling import SamplingOptions
from etcuda.llm.speculative import drawn_with_drafts
from etcuda.llm.text_session import TokenSession, generate_tokens
from etcuda.llm.verify import VerifyModel, check_rollback, check_rows
from tests.llm.architectures import VOCAB, prompt
from tests.llm.test_text_session import EagerProgram

SAMPLED = {"temperature": 0.8, "top_k": 20, "repetition_penalty": 1.2, "seed": 3}


class VerifyingProgram(EagerProgram):
    """A program with ``verify``. ``calls`` are the methods that were run."""

    def __init__(self, name: str) -> None:
        super().__init__(name, slots=5)
        self.verifier = VerifyModel(self.model, 5).eval()
        self.verify_rows, self.has_step = 5, False
        self.calls: list[str] = []

    def _execute(self, session: Any, method: str, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        self.calls.append(method)
        plain = self.model
        self.model = self.verifier if method == "verify" else plain  # type: ignore[assignment]
        try:
            return super()._execute(session, method, inputs)
        finally:
            self.model = plain


class Oracle:
    """Knows the answer, and errs at every place that ``wrong`` divides."""

    def __init__(self, whole: Sequence[int], wrong: int) -> None:
        self.whole, self.wrong = whole, wrong

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        places = range(len(tokens), min(len(tokens) + most, len(self.whole)))
        return [(self.whole[place] + (place % self.wrong == 0)) % VOCAB for place in places]


def answer(
    program: VerifyingProgram, session: TokenSession, count: int, drafter: Drafter | None, **more: Any
) -> tuple[list[int], Report]:
    allow = more.pop("allow", None)
    report, options = Report(), SamplingOptions(**more)
    drawn = None
    if drafter is not None:
        drawn = drawn_with_drafts(session, program, prompt(20), options, count, drafter, report, lambda: False, allow)
    made = generate_tokens(
        session, program, prompt(20), options, count, frozenset(), report, lambda: False, drawn, allow
    )  # fmt: skip
    return list(made), report


@pytest.fixture(scope="module", params=["llama", "gemma3_text", "qwen3_next", "falcon_h1"])
def program(request: pytest.FixtureRequest) -> VerifyingProgram:
    return VerifyingProgram(request.param)


@pytest.mark.parametrize("options", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("wrong", [1, 3, 1000])
def test_the_answer_is_the_same(program: VerifyingProgram, options: dict[str, Any], wrong: int) -> None:
    """Over a ring too, past its wrap, and with recurrent states; the last token is never in the cache."""
    expected, _ = answer(program, program.session(), 40, None, **options)
    session = program.session()
    program.calls.clear()
    got, report = answer(program, session, 40, Oracle([*prompt(20), *expected], wrong), **options)
    assert got == expected
    # Behind the last accepted token the oracle's guesses may still be in the cache.
    assert list(session.tokens[:59]) == [*prompt(20), *expected[:-1]][:59]
    assert report.generated_tokens == 40
    verified = program.calls.count("verify")
    if wrong == 1000:
        assert report.accepted_tokens == report.drafted_tokens
        assert verified <= 8
    elif wrong == 1:
        assert report.accepted_tokens == 0 < report.drafted_tokens
    else:
        assert 0 < report.accepted_tokens < report.drafted_tokens
    # The conversation goes on as if the guesses had never been.
    again, _ = answer(program, session, 40, None, **options)
    assert again == expected


def test_drafts_that_are_not_allowed_are_not_accepted(program: VerifyingProgram) -> None:
    plain, _ = answer(program, program.session(), 20, None)

    def allow(tokens: Sequence[int]) -> npt.NDArray[np.bool_]:
        mask = np.ones(VOCAB, dtype=bool)
        mask[plain[5]] = len(tokens) != 5
        return mask

    expected, _ = answer(program, program.session(), 20, None, allow=allow)
    got, report = answer(program, program.session(), 20, Oracle([*prompt(20), *plain], 1000), allow=allow)
    assert got == expected != plain
    assert report.accepted_tokens < report.drafted_tokens


def test_an_answer_with_drafts_whose_session_is_used_says_so(program: VerifyingProgram) -> None:
    expected, _ = answer(program, program.session(), 20, None)
    session, oracle = program.session(), Oracle([*prompt(20), *expected], 1000)
    drawn = drawn_with_drafts(session, program, prompt(20), SamplingOptions(), 20, oracle, Report(), lambda: False)
    assert [next(drawn), next(drawn)] == expected[:2]
    session.prefill(prompt(9), lambda: False)
    with pytest.raises(GenerationError, match="the answer: expected its session to be left alone until it ends"):
        next(drawn)


def test_a_model_that_drafts_for_itself_is_right(program: VerifyingProgram) -> None:
    expected, _ = answer(program, program.session(), 20, None)
    drafter = ModelDraft.__new__(ModelDraft)
    drafter._program, drafter._session = program, program.session()
    got, report = answer(program, program.session(), 20, drafter)
    assert got == expected
    assert report.accepted_tokens == report.drafted_tokens > 10
    assert "drafted" in str(report)


def test_ngrams_are_the_latest_longest_match() -> None:
    propose = NgramDraft().propose
    assert propose([1, 2, 3, 9, 1, 2, 3], 4) == [9, 1, 2, 3]
    assert propose([1, 2, 5, 1, 2, 6, 1, 2], 1) == [6]
    assert propose([7, 1, 2, 5, 3, 2, 6, 1, 2], 2) == [5, 3], "two tokens that match, not the later one"
    assert propose([4, 4], 3) == [4]
    for nothing in ([1], [1, 2, 3]):
        assert propose(nothing, 3) == []


def test_what_cannot_be_drafted(program: VerifyingProgram) -> None:
    with pytest.raises(GenerationError, match=f"vocabulary of {VOCAB + 1} tokens, got one of {VOCAB}"):
        ModelDraft(program, VOCAB + 1)
    program.verify_rows = 0
    with pytest.raises(GenerationError, match="expected a program with the method verify, got one without"):
        answer(program, program.session(), 4, NgramDraft())
    program.verify_rows = 5
    state = types.SimpleNamespace(recurrent=types.SimpleNamespace(layers=[RecurrentLayer(0, slots=4)] * 2))
    with pytest.raises(CheckpointError, match="expected recurrent layers that keep the states of 5 tokens, got 2 that"):
        VerifyModel(types.SimpleNamespace(cache=state), 5)  # type: ignore[arg-type]
    for rows, chunk, most in ((1, 8, 8), (17, 512, 16), (9, 8, 8)):
        with pytest.raises(CheckpointError, match=f"verify_rows: expected 0 for none, or 2 to {most}, got {rows}"):
            check_rows(rows, chunk)
    for rollback, chunk, most in ((-1, 512, 15), (16, 512, 15), (8, 8, 7)):
        with pytest.raises(CheckpointError, match=f"rollback: expected 0 to {most} tokens, got {rollback}. Pass --ro"):
            check_rollback(rollback, chunk)
