"""From a checkpoint to tokens, on the host: programs against transformers' own generation."""

from __future__ import annotations

import pathlib
import shutil
import threading
from collections.abc import Callable

import pytest
import torch

from etcuda import llm
from etcuda.errors import GenerationError
from etcuda.llm import SamplingOptions
from etcuda.llm.tokenizer import folder_of
from tests.llm.architectures import BOS, VOCAB, greedy, prompt
from tests.llm.conftest import CHUNK, MAX_SEQ_LEN, Exported

pytestmark = pytest.mark.slow
Program = Callable[[str], Exported]


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt_oss"])
def test_greedy_tokens_are_those_of_transformers(program: Program, name: str) -> None:
    exported = program(name)
    model = llm.load(exported.path)
    for length in (1, 2, CHUNK, CHUNK + 1, 39):
        tokens = prompt(length, seed=length)
        expected = greedy(exported.model, tokens, 24)
        made = model.generate(tokens, max_new_tokens=24, ignore_eos=True)
        made.text()
        assert made.tokens == expected
        assert len(set(expected)) > 3
        assert made.report.finish_reason == "length"


def test_answers_fill_the_cache(program: Program) -> None:
    model = llm.load(program("llama").path)
    made = model.generate(prompt(60), ignore_eos=True)
    made.text()
    assert len(made.tokens) == MAX_SEQ_LEN - 60 + 1


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_sessions_do_not_mix(program: Program, name: str) -> None:
    model = llm.load(program(name).path)
    prompts = [prompt(21, seed=7), prompt(33, seed=8)]
    alone = []
    for tokens in prompts:
        made = model.generate(tokens, max_new_tokens=12, ignore_eos=True)
        made.text()
        alone.append(made.tokens)
    together = [model.generate(tokens, max_new_tokens=12, ignore_eos=True) for tokens in prompts]
    for _ in range(12):
        for made in together:
            next(made, None)  # A piece may be of several tokens.
    for made in together:
        made.text()
    assert [made.tokens for made in together] == alone


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_a_session_computes_a_prefix_once(program: Program, name: str) -> None:
    model = llm.load(program(name).path)
    tokens, session = prompt(30, seed=3), model.session()
    first = session.generate(tokens, max_new_tokens=6, ignore_eos=True)
    first.text()
    whole = [*tokens, *first.tokens, *prompt(5, seed=4)]
    fork = session.fork()
    again = session.generate(whole, max_new_tokens=6, ignore_eos=True)
    again.text()
    fresh = model.generate(whole, max_new_tokens=6, ignore_eos=True)
    fresh.text()
    assert again.tokens == fresh.tokens
    assert (again.report.reused_tokens, fresh.report.reused_tokens) == (35, 0)
    # The fork was made before, and does not know what its origin said since.
    assert list(fork.tokens) == whole[:35]
    other = [*whole[:33], *prompt(4, seed=9)]
    forked = fork.generate(other, max_new_tokens=6, ignore_eos=True)
    forked.text()
    expected = model.generate(other, max_new_tokens=6, ignore_eos=True)
    expected.text()
    assert forked.tokens == expected.tokens
    assert forked.report.reused_tokens == 33


def test_a_ring_is_taken_back_as_far_as_it_reaches(program: Program) -> None:
    model = llm.load(program("gemma3_text").path)
    assert model.program.max_rollback == CHUNK - 1
    tokens = prompt(50, seed=5)
    for back in (CHUNK - 1, CHUNK):
        session = model.session()
        session.generate(tokens, max_new_tokens=1).text()
        shorter = [*tokens[: 50 - back], 11]
        made = session.generate(shorter, max_new_tokens=8, ignore_eos=True)
        made.text()
        expected = model.generate(shorter, max_new_tokens=8, ignore_eos=True)
        expected.text()
        assert made.tokens == expected.tokens
        assert made.report.reused_tokens == (50 - back if back < CHUNK else 0)


def test_text_is_the_text_of_the_tokens(program: Program) -> None:
    model = llm.load(program("llama").path)
    made = model.generate("Shall I compare thee", max_new_tokens=20, ignore_eos=True)
    pieces = list(made)
    assert made.report.prompt_tokens == len(model.encode("Shall I compare thee"))
    assert model.encode("Shall I compare thee")[0] == BOS
    assert "".join(pieces) == model.tokenizer.decode(made.tokens)
    assert len(pieces) > 3


def test_a_stop_string_ends_the_answer(program: Program) -> None:
    model = llm.load(program("llama").path)
    whole = model.generate("Shall I", max_new_tokens=30, ignore_eos=True).text()
    stop = whole[9:13]
    made = model.generate("Shall I", max_new_tokens=30, ignore_eos=True, stop=[stop, "never said"])
    assert made.text() == whole[: whole.index(stop)]
    assert made.report.finish_reason == "stop"


def test_how_likely_the_tokens_are(program: Program) -> None:
    exported = program("llama")
    model, tokens = llm.load(exported.path), prompt(7)
    made = model.generate(tokens, max_new_tokens=6, ignore_eos=True, logprobs=3)
    made.text()
    assert made.tokens == _tokens(model, tokens, 6)
    with torch.no_grad():
        logits = exported.model(torch.tensor([[*tokens, *made.tokens]])).logits[0, len(tokens) - 1 : -1]
    wanted = logits.log_softmax(-1)
    top = wanted.topk(3)
    for place, each in enumerate(made.logprobs):
        assert each.token == made.tokens[place]
        assert each.logprob == pytest.approx(float(wanted[place, each.token]), abs=1e-4)
        assert [token for token, _ in each.top] == top.indices[place].tolist()
        assert [logprob for _, logprob in each.top] == pytest.approx(top.values[place].tolist(), abs=1e-4)
    assert len(made.logprobs) == 6


def test_sampling_is_seeded(program: Program) -> None:
    model = llm.load(program("llama").path)

    def answer(seed: int, **options: float) -> list[int]:
        made = model.generate(prompt(9), SamplingOptions(seed=seed, **options), max_new_tokens=16, ignore_eos=True)
        made.text()
        return made.tokens

    assert answer(1, temperature=1.0) == answer(1, temperature=1.0)
    assert answer(1, temperature=1.0) != answer(2, temperature=1.0)
    assert answer(3, temperature=1.0, top_k=1) == answer(4)


def test_chat(program: Program) -> None:
    model = llm.load(program("llama").path)
    session, messages = model.session(), [{"role": "user", "content": "Who art thou?"}]
    first = session.chat(messages, max_new_tokens=4)
    said = first.text()
    messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "And why?"}]
    second = session.chat(messages, max_new_tokens=4)
    second.text()
    # What was rendered before is in the session, up to where the answer's tokens are not its text's.
    assert second.report.reused_tokens >= first.report.prompt_tokens
    lone = model.chat(messages, max_new_tokens=4)
    lone.text()
    assert second.tokens == lone.tokens
    with pytest.raises(GenerationError, match=r"chat: expected messages that the chat template takes, got roles judge"):
        model.chat([{"role": "judge", "content": "?"}])


def test_cancel_from_another_thread(program: Program) -> None:
    model = llm.load(program("llama").path)
    made = model.generate(prompt(5), max_new_tokens=50, ignore_eos=True)
    for _ in range(3):
        next(made)
    thread = threading.Thread(target=made.cancel)
    thread.start()
    thread.join()
    made.text()
    assert made.report.finish_reason == "cancelled"
    assert 3 <= len(made.tokens) < 20


def test_bad_requests(program: Program, tmp_path: pathlib.Path) -> None:
    path = program("llama").path
    model = llm.load(path)
    with pytest.raises(GenerationError, match=r"expected at most the 64 tokens that the program's cache holds, got 65"):
        model.generate([5] * 65)
    with pytest.raises(GenerationError, match=r"max_new_tokens: expected 1 to 5 after a prompt of 60 tokens .* got 6"):
        model.generate([5] * 60, max_new_tokens=6)
    with pytest.raises(GenerationError, match=r"prompt: expected one token or more, got none"):
        model.generate([])
    with pytest.raises(GenerationError, match=rf"expected token ids from 0 to {VOCAB - 1}, got {VOCAB}"):
        model.generate([1, VOCAB])
    with pytest.raises(GenerationError, match=r"stop: expected texts that are not empty"):
        model.generate([1], stop=[""])
    without = llm.LanguageModel(model.program, tmp_path)
    assert without.generate([7], max_new_tokens=2, ignore_eos=True).text().split() == [
        str(token) for token in _tokens(model, [7], 2)
    ]
    with pytest.raises(GenerationError, match=r"expected the program's tokenizer, got no such file"):
        without.generate("text")
    with pytest.raises(GenerationError, match=r"m\.pte: expected a program, got no such file"):
        llm.load(tmp_path / "m.pte")
    (tmp_path / "m.pte").write_bytes(b"no program")
    with pytest.raises(GenerationError, match=r"m\.pte: expected a program that loads, .*Copy m\.pte again, or export"):
        llm.load(tmp_path / "m.pte")
    shutil.copyfile(path, tmp_path / "m.pte")
    with pytest.raises(GenerationError, match=r"There is no m\.ptd beside m\.pte: copy it there, or .* --data-path\."):
        llm.load(tmp_path / "m.pte")
    (tmp_path / "m.weights.json").write_text("{}")
    with pytest.raises(GenerationError, match=r"Make it: etcuda weights m\.pte\."):
        llm.load(tmp_path / "m.pte")
    (tmp_path / "m.ptd").write_text("short")
    with pytest.raises(GenerationError, match=r"expected a program that loads, .*Copy m\.pte and m\.ptd again"):
        llm.load(tmp_path / "m.pte")
    assert folder_of(path).is_dir()


def _tokens(model: llm.LanguageModel, tokens: list[int], count: int) -> list[int]:
    made = model.generate(tokens, max_new_tokens=count, ignore_eos=True)
    made.text()
    return made.tokens


def test_a_program_that_is_no_language_model(exported: Callable[[str, str], pathlib.Path]) -> None:
    with pytest.raises(GenerationError, match=r"got a program without prefill, decode, get_max_seq_len"):
        llm.load(exported("mlp-fp32", "host"))
