"""Language models on the local GPU: logits of prefill and decode against transformers', past the window's wrap; plans
against what is measured; sampling on the device. Programs run without PyTorch, so that no release of torch matters."""

from __future__ import annotations

import copy
import itertools
import json
import pathlib
import subprocess
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", minversion="5.24", reason="expected transformers 5.24 or newer")

from transformers import AutoModelForCausalLM

from etcuda.library import LLM_RUNNER_NAME, find_runner
from etcuda.llm.bench import measure
from etcuda.llm.export import ExportOptions, export
from etcuda.llm.plan import _LIBRARY_BYTES, MemoryPlan, plan
from etcuda.llm.quantization import QuantOptions
from etcuda.options import CompileOptions
from etcuda.target import TARGETS
from examples.cpp.session import run_calls
from examples.models import Call, relative_error
from examples.running import gpu_arch
from tests.llm.architectures import CONFIGS, EXPERTS, OTHERS, RECURRENT, prompt, save
from tests.llm.dequantised import dequantised, load_quantised
from tests.llm.ties import clear_choices

_TOLERANCE = 2e-2
# Chunks and tokens one by one, past the wrap of a ring of 8 + 16 - 1.
_SIZES = (16, 16, 1, 1, 5, 1, 9, 1)


def calls(tokens: list[int]) -> list[Call]:
    made, start = [], 0
    for size in _SIZES:
        some = torch.tensor([tokens[start : start + size]])
        made.append(Call("decode" if size == 1 else "prefill", (some, torch.arange(start, start + size))))
        start += size
    return made


def transformers_logits(model: Any, made: list[Call]) -> list[torch.Tensor]:
    """What transformers itself says at the end of each call, over the whole sequence and without a cache."""
    tokens = torch.cat([call.inputs[0] for call in made], dim=1)
    with torch.no_grad():
        logits = model(tokens, use_cache=False).logits[0]
    ends = itertools.accumulate(call.inputs[0].shape[1] for call in made)
    return [logits[end - 1 : end] for end in ends]


def errors(model: Any, made: list[Call], got: list[torch.Tensor], in_bf16: list[torch.Tensor]) -> tuple[float, float]:
    """From ``model`` in fp32, of the program and of transformers in bf16, where experts are chosen clearly: another
    expert is another answer, and bf16 decides ties as it rounds."""
    exact = transformers_logits(model, made)
    clear = clear_choices(model, torch.cat([call.inputs[0] for call in made], dim=1))
    ends = [end - 1 for end in itertools.accumulate(call.inputs[0].shape[1] for call in made)]
    kept = [place for place, end in enumerate(ends) if clear[end]]
    assert 2 * len(kept) >= len(made)
    one, other = [
        relative_error([each[place].float() for place in kept], [exact[place] for place in kept])
        for each in (got, in_bf16)
    ]
    return one, other


@pytest.mark.parametrize("name", [*CONFIGS, *EXPERTS, *OTHERS, *RECURRENT])
def test_logits_are_those_of_transformers(name: str, tmp_path: pathlib.Path, run_session: pathlib.Path) -> None:
    arch = gpu_arch()
    assert arch is not None
    # Larger weights than these multiply what bf16 rounds, and experts are then chosen anew.
    whole = save(name, tmp_path / "checkpoint", deviation=0.3 if name.startswith("gemma4") else 0.1)
    options = ExportOptions(
        target=arch, dtype="bf16", max_seq_len=64, chunk=16, compile=CompileOptions(weights="pte", progress=False)
    )
    export(tmp_path / "checkpoint", tmp_path / "m.pte", options)
    made = calls(prompt(sum(_SIZES)))
    in_bf16 = transformers_logits(AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint", dtype="bfloat16"), made)
    for parameter in whole.parameters():
        parameter.copy_(parameter.bfloat16())
    got = run_calls(run_session, tmp_path / "m.pte", made, like=in_bf16)
    error, own = errors(whole, made, got, in_bf16)
    print(f"{name}: {error:.2e} from fp32, transformers in bf16 {own:.2e}")
    assert error < max(_TOLERANCE, 1.5 * own)


# First positions and tokens of calls, behind a prompt of 16: what the call behind goes back over was guessed wrongly.
# Each kind of call comes often enough to become a CUDA graph.
_ROWS = ((16, 4), (18, 4), (19, 4), (23, 1), (24, 1), (23, 4), (27, 3), (28, 3), (29, 3), (31, 1), (29, 1), (30, 4))


def rows(truth: list[int]) -> tuple[list[Call], list[slice]]:
    """Calls, and the places of the logits of each that are those of ``truth``."""
    made, places = [Call("prefill", (torch.tensor([truth[:16]]), torch.arange(16)))], [slice(15, 16)]
    for index, (first, count) in enumerate(_ROWS):
        stay = min(count, _ROWS[index + 1][0] - first) if index + 1 < len(_ROWS) else count
        some = [(token + 1) % 500 for token in truth[first : first + count]]
        some[: max(stay, 0)] = truth[first : first + max(stay, 0)]
        inputs = (torch.tensor([some]), torch.arange(first, first + count))
        made.append(Call("decode" if count == 1 else "verify", inputs))
        places.append(slice(first, first + max(stay, 0)))
    return made, places


@pytest.mark.parametrize("name", [*RECURRENT, "llama"])
def test_rows_are_verified_and_taken_back(name: str, tmp_path: pathlib.Path, run_session: pathlib.Path) -> None:
    arch = gpu_arch()
    assert arch is not None
    save(name, tmp_path / "checkpoint", deviation=0.1)
    options = ExportOptions(
        target=arch, dtype="bf16", max_seq_len=64, chunk=16, verify_rows=4,
        compile=CompileOptions(weights="pte", progress=False),
    )  # fmt: skip
    export(tmp_path / "checkpoint", tmp_path / "m.pte", options)
    truth = prompt(40)
    made, places = rows(truth)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint", dtype="bfloat16")
    with torch.no_grad():
        logits = model(torch.tensor([truth]), use_cache=False).logits[0]
        exact = model.float()(torch.tensor([truth]), use_cache=False).logits[0]
    clear = clear_choices(model, torch.tensor([truth]))
    assert 2 * sum(int(clear[place].sum()) for place in places) >= sum(clear[place].numel() for place in places)
    wanted, best = [[each[place][clear[place]] for place in places if clear[place].any()] for each in (logits, exact)]
    # Some models say what they say in fp32, whatever they compute in.
    like = [
        torch.empty((1, *shape), dtype=logits.dtype) if call.method == "verify" else logits[:1]
        for call, shape in zip(made, ((call.inputs[0].shape[1], logits.shape[1]) for call in made), strict=True)
    ]
    results = run_calls(run_session, tmp_path / "m.pte", made, like=like)
    got = [
        result.float().reshape(-1, logits.shape[1])[: place.stop - place.start][clear[place]]
        for result, place in zip(results, places, strict=True)
        if clear[place].any()
    ]
    error, own = relative_error(got, best), relative_error(wanted, best)
    print(f"{name}: {error:.2e} from fp32, transformers in bf16 {own:.2e}")
    assert error < max(_TOLERANCE, 1.5 * own)


# Activations in int8 err by a hundredth in each product, and experts are then chosen anew.
_QUANTISED = [
    *((name, "int4", "exact", _TOLERANCE) for name in (*EXPERTS, *RECURRENT)),
    *((name, "int8", "exact", _TOLERANCE) for name in ("gpt_oss", "qwen3_moe")),
    *((name, "int4", "int8", 6e-2) for name in ("gpt_oss", "qwen3_moe")),
]


@pytest.mark.parametrize(("name", "quant", "activations", "tolerance"), _QUANTISED)
def test_quantised_logits_are_those_of_the_dequantised_model(
    name: str, quant: str, activations: str, tolerance: float, tmp_path: pathlib.Path, run_session: pathlib.Path
) -> None:
    arch = gpu_arch()
    assert arch is not None
    whole = save(name, tmp_path / "checkpoint", deviation=0.3 if name.startswith("gemma4") else 0.1)
    options = ExportOptions(
        target=arch, dtype="bf16", max_seq_len=64, chunk=16, compile=CompileOptions(weights="pte", progress=False),
        quant=QuantOptions(quant, activation_dtype=activations),
    )  # fmt: skip
    summary = export(tmp_path / "checkpoint", tmp_path / "m.pte", options)
    assert not summary.left_out
    for parameter in whole.parameters():
        parameter.copy_(parameter.bfloat16())
    exact_model = dequantised(load_quantised(tmp_path / "checkpoint", quant, "bf16").model, whole)
    made = calls(prompt(sum(_SIZES)))
    in_bf16 = transformers_logits(copy.deepcopy(exact_model).bfloat16(), made)
    got = run_calls(run_session, tmp_path / "m.pte", made, like=in_bf16)
    error, own = errors(exact_model, made, got, in_bf16)
    print(f"{name} {quant} {activations}: {error:.2e} from the dequantised, transformers in bf16 {own:.2e}")
    assert error < max(tolerance, 1.5 * own)


@pytest.mark.parametrize("quant", ["none", "int4"])
def test_a_plan_is_what_bench_measures(quant: str, tmp_path: pathlib.Path) -> None:
    arch = gpu_arch()
    assert arch is not None
    # The widths of Qwen3-0.6B.
    config = {
        "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": 151936, "hidden_size": 1024,
        "intermediate_size": 3072, "num_hidden_layers": 6, "num_attention_heads": 16, "num_key_value_heads": 8,
        "head_dim": 128, "max_position_embeddings": 8192, "tie_word_embeddings": True, "dtype": "bfloat16",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    options = ExportOptions(target=arch, random_seed=0, device_sampling=True, quant=QuantOptions(quant))
    export(tmp_path, tmp_path / "m.pte", options)
    planned = plan(tmp_path, TARGETS[arch], options)
    got = measure(tmp_path / "m.pte", None, ["pp512", "pp700", "tg16", "gs16"], [0, 2000], 3, None)
    print(f"{quant}: planned {planned.peak_bytes}, measured {got.peak_bytes}, in use on the GPU {got.gpu_used_bytes}")
    # What library products may take at most is planned for, and not taken by those that do without.
    spare = _LIBRARY_BYTES if quant == "none" else 0
    assert -0.05 * got.peak_bytes < planned.peak_bytes - got.peak_bytes < 0.05 * got.peak_bytes + spare
    limits = {(row.test, row.depth): row.limit for row in got.rows}
    assert limits["tg16", 0] == limits["gs16", 0] == pytest.approx(_limit(planned, 7.5), rel=1e-6)
    assert limits["tg16", 2000] == pytest.approx(_limit(planned, 2007.5), rel=1e-6)


def _limit(planned: MemoryPlan, tokens: float) -> float:
    """The limit behind tokens, from those of the plan: the time grows with the tokens by the same for each."""
    (few, first), (many, second) = planned.limits.items()
    return 1 / (1 / first + (1 / second - 1 / first) * (tokens - few) / (many - few))


def test_sampling_on_the_device(tmp_path: pathlib.Path) -> None:
    arch = gpu_arch()
    assert arch is not None
    save("gemma3_text", tmp_path / "checkpoint")
    options = ExportOptions(target=arch, dtype="bf16", max_seq_len=64, chunk=16, device_sampling=True)
    export(tmp_path / "checkpoint", tmp_path / "m.pte", options)
    command = [str(find_runner(LLM_RUNNER_NAME)), "--model_path", str(tmp_path / "m.pte")]
    command += ["--data_path", str(tmp_path / "m.ptd"), "--ids", ",".join(map(str, prompt(20))), "--ignore_eos"]

    def answer(*more: str) -> list[int]:
        done = subprocess.run([*command, "--max_new_tokens=24", *more], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stderr.splitlines()[-1])["generated_tokens"] == 24
        return [int(each) for each in done.stdout.split()]

    assert answer() == answer("--temperature=2", "--top_k=1")
    # A penalty that is next to 1 changes nothing that is not nearly equal, a great one leaves no token twice.
    assert answer()[:4] == answer("--repetition_penalty=1.0000001")[:4]
    assert len(set(answer("--repetition_penalty=1000"))) > 20
    warm = ("--temperature=1.5", "--top_p=0.9", "--seed=5")
    assert answer(*warm) == answer(*warm)
    assert answer(*warm) != answer(*warm[:2], "--seed=6")
