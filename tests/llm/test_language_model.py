"""What Python's users ask of a model, over a program that is made up."""

from __future__ import annotations

import pathlib
import random
from typing import Any

import numpy as np
import pytest

from etcuda.errors import GenerationError
from etcuda.llm.language_model import LanguageModel, TextSession
from etcuda.llm.report import Report
from etcuda.llm.sampling import SamplingOptions
from etcuda.llm.text_session import TokenSession, _common
from tests.llm.architectures import VOCAB
from tests.llm.conftest import train_tokenizer
from tests.llm.test_text_stream import byte_fallback
from tests.serve.fakes import FakeProgram, expected, fake_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    made = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(made)
    return made


@pytest.fixture
def model(folder: pathlib.Path) -> LanguageModel:
    return fake_model(FakeProgram(), folder)


def session(model: LanguageModel) -> TextSession:
    return TextSession(model, TokenSession(model.program, object()))


def test_one_text_ends_an_answer_as_a_list_of_it_does(model: LanguageModel) -> None:
    whole = session(model).generate("Shall I", max_new_tokens=30).text()
    stop = whole[9:12]
    for given in (stop, [stop], ("never said", stop)):
        made = session(model).generate("Shall I", max_new_tokens=30, stop=given)
        assert made.text() == whole[: whole.index(stop)]
        assert made.report.finish_reason == "stop"


def test_what_is_told_of_the_tokens_of_an_answer(model: LanguageModel) -> None:
    made = session(model).generate("Shall I", max_new_tokens=30, logprobs=0)
    assert made.text()
    assert [each.token for each in made.logprobs] == made.tokens
    for count in (-1, VOCAB + 1):
        with pytest.raises(GenerationError, match=rf"logprobs: expected 0 to the 512 tokens .* got {count}"):
            session(model).generate("Shall I", logprobs=count)


def test_an_answer_of_several_messages_ends_with_the_last(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    from tokenizers import Tokenizer

    assert fake_model(FakeProgram(), folder).end_ids == {2, 6}, "its own, and <|end|>"
    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.add_special_tokens(["<|return|>", "<|call|>"])
    made.save(str(tmp_path / "tokenizer.json"))
    assert fake_model(FakeProgram(), tmp_path).end_ids == {2, VOCAB, VOCAB + 1}, "as of GPT-OSS"


def test_a_text_that_ends_an_answer_may_be_found_at_its_end(folder: pathlib.Path, model: LanguageModel) -> None:
    # Tokens of "ab" and the first byte of a character: the text before it is looked at though the byte is held back.
    ids = model.encode("ab 🙂")[:-1]
    pieces = list(model.pieces(iter(ids), ("\ufffd",), [], report := session(model).generate([5]).report))
    assert "".join(pieces) == model.tokenizer.decode(ids).partition("\ufffd")[0]
    assert report.finish_reason == "stop"


def test_texts_that_end_an_answer_straddle_tokens_and_bytes(model: LanguageModel, tmp_path: pathlib.Path) -> None:
    chosen = random.Random(3)
    byte_fallback(tmp_path / "fallback")
    for made in (model, fake_model(FakeProgram(), (tmp_path / "fallback"))):
        for _ in range(80):
            text = "".join(chosen.choice(["a", "b ", "é", "你", "好", "🙂", "the "]) for _ in range(20))
            ids = made.tokenizer.encode(text, special=False)
            said = made.tokenizer.decode(ids)
            start = chosen.randrange(len(said) - 4)
            stop = said[start : start + chosen.randrange(1, 5)]
            report = Report()
            assert "".join(made.pieces(iter(ids), (stop,), [], report)) == said[: said.index(stop)]
            assert report.finish_reason == "stop"
            assert "".join(made.pieces(iter(ids), (said + "x",), [], Report())) == said


@pytest.mark.parametrize(
    ("prompt", "more", "message"),
    [
        ("a\ud800", {}, r"prompt: expected a text of whole characters, got '\\ud800' at place 1"),
        ([1.5], {}, r"prompt: expected a text or token ids, got \[1\.5\]: 'float' object"),
        ([7, "x"], {}, "prompt: expected a text or token ids"),
        ("a", {"stop": [4]}, r"stop: expected texts that are not empty, got \(4,\)"),
        ("a", {"stop": ""}, r"stop: expected texts that are not empty, got \(''"),
    ],
)
def test_what_is_no_prompt(model: LanguageModel, prompt: Any, more: dict[str, Any], message: str) -> None:
    with pytest.raises(GenerationError, match=message):
        session(model).generate(prompt, **more)


def test_numbers_of_numpy_are_token_ids(model: LanguageModel) -> None:
    made = session(model).generate(np.array([7, 8]), max_new_tokens=3)
    made.text()
    assert made.tokens == expected([7, 8], 3)


@pytest.mark.parametrize("given", ["hi", [4], [{"content": "x"}], [{"role": 4}], {"role": "user"}])
def test_what_is_no_conversation(model: LanguageModel, given: Any) -> None:
    with pytest.raises(
        GenerationError, match="chat: expected a list of messages, each an object with role and content"
    ):
        session(model).chat(given)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ 1 + messages }}", "unsupported operand type"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
        ("{{ raise_exception('no') }}", "no"),
        ("{% if %}", "Expected an expression"),
    ],
)
def test_whatever_a_template_raises_is_said(model: LanguageModel, template: str, said: str) -> None:
    model.tokenizer._template = template
    with pytest.raises(GenerationError, match=rf"takes, got roles user: .*{said}"):
        session(model).chat([{"role": "user", "content": "x"}])


def test_tools_go_to_the_template_that_knows_of_them(model: LanguageModel) -> None:
    says, tools = [{"role": "user", "content": "x"}], [{"type": "function", "function": {"name": "now"}}]
    with pytest.raises(GenerationError, match="tools: expected a chat template that knows of tools"):
        session(model).chat(says, tools=tools)
    model.tokenizer._tool_template = "{{ tools[0].function.name }}:{{ messages[0].content }}"
    assert model.tokenizer.render(says, tools=tools) == "now:x"
    assert "now" not in model.tokenizer.render(says)
    made = session(model).chat(says, tools=tools, max_new_tokens=2)
    made.text()
    assert made.tokens == expected(model.tokenizer.encode("now:x", special=False), 2)


def test_an_answer_whose_session_is_used_by_another_says_so(model: LanguageModel) -> None:
    # As where the device samples: this program samples on the host.
    both = session(model)
    first = both.generate([7, 8], max_new_tokens=9)
    next(first)
    second = both.generate([9, 10], max_new_tokens=4)
    second.text()
    assert second.tokens == expected([9, 10], 4)
    with pytest.raises(GenerationError, match="the answer: expected its session to be left alone until it ends"):
        first.text()


def test_options_that_no_generator_takes() -> None:
    with pytest.raises(GenerationError, match=r"seed: expected 0 to 2\*\*63 - 1, got 9223372036854775808"):
        SamplingOptions(seed=1 << 63)
    with pytest.raises(GenerationError, match="repetition_penalty: expected a positive number, got inf"):
        SamplingOptions(repetition_penalty=float("inf"))


def test_what_two_sequences_begin_with() -> None:
    one = list(range(700))
    assert _common(one, tuple(one), 700) == 700
    for place in (0, 1, 255, 256, 257, 511, 512, 699):
        other = [*one[:place], -1, *one[place + 1 :]]
        assert _common(one, other, 700) == place
        assert _common(one, other, place) == place
    assert _common(one, one[:300], 299) == 299
    assert _common([], [], -1) == 0
