"""``llm_runner``: the tokens and the draws of Python, its measurements, and what it refuses."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from collections.abc import Callable

import executorch
import pytest

from etcuda import llm
from etcuda.cli import main
from etcuda.errors import GenerationError
from etcuda.library import LLM_RUNNER_NAME, find_headers, find_library, find_runner
from etcuda.llm import SamplingOptions
from etcuda.llm.bench import BenchRow, draw, read_result
from tests.llm.architectures import prompt
from tests.llm.conftest import MAX_SEQ_LEN, Exported

Program = Callable[[str], Exported]
_LINES = "\n".join(
    map(
        json.dumps,
        [
            {
                "load_ns": 5e8,
                "first_step_ns": 25e7,
                "weight_bytes": 3000,
                "chunk": 16,
                "max_seq_len": 64,
                "decode_weight_bytes": 1000,
                "bandwidth_mbs": 0,
                "cache_reads": [10, 0, 100, 6],
            },
            {"test": "pp16", "depth": 0, "tokens": 16, "ns": [1000, 2000]},
            {"test": "tg8", "depth": 4, "tokens": 8, "ns": [4000]},
            {"peak_bytes": 77, "gpu_used_bytes": 99},
        ],
    )
)


def run(path: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(find_runner(LLM_RUNNER_NAME)), "--model_path", str(path)]
    command += [f"--data_path={path.with_suffix('.ptd')}"] if path.with_suffix(".ptd").is_file() else []
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1.7},
        {"temperature": 1.2, "seed": 5},
        {"temperature": 1.5, "top_k": 40, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2, "seed": 12},
    ],
    ids=str,
)
def test_tokens_are_those_of_python(program: Program, options: dict[str, float]) -> None:
    path, tokens = program("gemma3_text").path, prompt(21)
    made = llm.load(path).generate(tokens, SamplingOptions(**options), max_new_tokens=30, ignore_eos=True)
    made.text()
    given = [f"--{name}={value}" for name, value in options.items()]
    ids = ",".join(map(str, tokens))
    done = run(path, "--ids", ids, "--max_new_tokens=30", "--ignore_eos", *given)
    assert done.returncode == 0, done.stderr
    assert [int(each) for each in done.stdout.split()] == made.tokens
    figures = json.loads(done.stderr)
    assert (figures["prompt_tokens"], figures["generated_tokens"], figures["finish_reason"]) == (21, 30, "length")


@pytest.mark.slow
def test_measurements_that_nobody_chose_fit_the_cache(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(program("llama").path)
    for depth, length in ((0, MAX_SEQ_LEN), (MAX_SEQ_LEN - 4, 4)):
        assert main(["bench", path, "-r", "1", "-d", str(depth), "-o", "csv"]) == 0
        names = [line.split(",")[0] for line in capsys.readouterr().out.splitlines()]
        assert names == ["test", f"pp{length}", f"tg{length}"]
    assert main(["bench", path, "-p", "512"]) == 2
    assert f"pp512 at depth 0: expected at most {MAX_SEQ_LEN} tokens in the cache" in capsys.readouterr().err


@pytest.mark.slow
def test_measurements(program: Program, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path) -> None:
    path = str(program("llama").path)
    arguments = ["bench", path, "-p", "16,32", "-n", "4", "-d", "0,20", "-r", "2"]
    assert main([*arguments, "-o", "json", "--bandwidth-gbs", "100", "--picture", str(tmp_path / "p.png")]) == 0
    read = json.loads(capsys.readouterr().out)
    assert [(row["test"], row["depth"], len(row["rates"])) for row in read["tests"]] == [
        ("pp16", 0, 2), ("pp32", 0, 2), ("tg4", 0, 2), ("pp16", 20, 2), ("pp32", 20, 2), ("tg4", 20, 2),
    ]  # fmt: skip
    weights = llm.load(path).program.weight_bytes - 512 * 64 * 4
    # Of 1 KiB a token in two layers, in fp32.
    per_token = 2 * 2 * 2 * 16 * 4
    assert [row["limit"] for row in read["tests"]][1:3] == [None, 1e11 / (weights + 2.5 * per_token)]
    assert read["tests"][5]["limit"] == 1e11 / (weights + 22.5 * per_token)
    assert read["peak_bytes"] > weights
    assert (tmp_path / "p.png").stat().st_size > 1000
    assert main([*arguments, "-d", "50"]) == 2
    assert (
        f"pp16 at depth 50: expected at most {MAX_SEQ_LEN} tokens in the cache, got 66. Ask for"
        in capsys.readouterr().err
    )


@pytest.mark.slow
def test_sampling_on_the_device(program: Callable[..., Exported], capsys: pytest.CaptureFixture[str]) -> None:
    path, tokens = program("llama", device_sampling=True).path, prompt(18)
    options = SamplingOptions(temperature=1.5, top_k=30, seed=4, repetition_penalty=1.3)
    made = llm.load(path).generate(tokens, options, max_new_tokens=20, ignore_eos=True)
    made.text()
    given = ["--temperature=1.5", "--top_k=30", "--seed=4", "--repetition_penalty=1.3", "--ignore_eos"]
    given.append("--max_new_tokens=20")
    done = run(path, f"--ids={','.join(map(str, tokens))}", *given)
    assert [int(each) for each in done.stdout.split()] == made.tokens, done.stderr
    assert main(["bench", str(path), "-p", "", "-n", "4", "-s", "4", "-r", "1", "-o", "csv"]) == 0
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()] == ["test", "tg4", "gs4"]
    assert main(["bench", str(program("llama").path), "-s", "4"]) == 2


@pytest.mark.slow
def test_steps_that_run_ahead_are_taken_back(program: Callable[..., Exported], tmp_path: pathlib.Path) -> None:
    path, built = program("llama", device_sampling=True).path, tmp_path / "steps_ahead"
    root, library = pathlib.Path(executorch.__path__[0]), find_library()
    types = root / "include" / "executorch" / "runtime" / "core" / "portable_type" / "c10"
    command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-DC10_USING_CUSTOM_GENERATED_MACROS"]
    command += ["-isystem", str(root / "include"), "-isystem", str(types), f"-I{find_headers()}"]
    command += [str(pathlib.Path(__file__).parent / "steps_ahead.cpp"), "-o", str(built)]
    command += [str(library), f"-L{root / 'lib'}", "-Wl,--no-as-needed", "-lexecutorch"]
    command += ["-lexecutorch_kernels_optimized", "-lexecutorch_threadpool"]
    command += [f"-Wl,-rpath,{library.parent}", f"-Wl,-rpath,{root / 'lib'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    arguments = [str(built), str(path), str(path.with_suffix(".ptd"))]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


@pytest.mark.slow
def test_the_example(program: Program, cpp_examples: pathlib.Path) -> None:
    path, tokens = program("gemma3_text").path, prompt(20)
    command = [str(cpp_examples / "generate_ids"), str(path), str(path.with_suffix(".ptd")), "9"]
    done = subprocess.run([*command, *map(str, tokens)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [[int(each) for each in line.split()] for line in done.stdout.splitlines()]
    model = llm.load(path)
    for line, temperature in zip(lines, (0.0, 1.0), strict=True):
        made = model.generate(tokens, SamplingOptions(temperature=temperature), max_new_tokens=9, ignore_eos=True)
        made.text()
        assert line == made.tokens


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--ids=1,600"], 4, "expected token ids from 0 to 511, got 600"),
        (["--ids=1", "--max_new_tokens=65"], 4, "max_new_tokens: expected 0 to 64, got 65"),
        ([f"--ids={','.join(['5'] * 65)}"], 4, "prompt: expected 1 to 64 tokens, got 65"),
    ],
)
def test_prompts_that_do_not_fit(program: Program, arguments: list[str], code: int, message: str) -> None:
    done = run(program("llama").path, *arguments)
    assert (done.returncode, message in done.stderr) == (code, True), done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "expected one of --ids and --bench, got neither"),
        (["--ids=1", "--bench=pp4"], 2, "expected one of --ids and --bench, got both"),
        (["--ids=1,x"], 2, "--ids: expected a whole number"),
        (["--bench=xx4"], 2, "--bench: expected tests such as pp512,tg128, got 'xx4'"),
        (["--ids=1", "--top_p=2"], 2, "--top_p: expected above 0, at most 1"),
        (["--ids=1", "--temperature=warm"], 2, "--temperature: expected a number, got 'warm'"),
        (["--ids=1", "--verify_weights=no"], 2, "--verify_weights: expected true or false, got 'no'"),
        (["--ids=1", "--tempreature=1"], 2, "unknown option --tempreature"),
        (["--ids=1"], 3, "cannot load"),
    ],
)
def test_bad_arguments(arguments: list[str], code: int, message: str, tmp_path: pathlib.Path) -> None:
    done = run(tmp_path / "m.pte", *arguments)
    assert (done.returncode, message in done.stderr) == (code, True), done.stderr


@pytest.mark.parametrize("name", ["rates.xyz", "nowhere/rates.png"])
def test_a_picture_that_cannot_be_written(name: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(
        GenerationError, match=r"picture: .*: expected the path of a \.png or \.svg file that can be writ"
    ):
        draw(read_result(_LINES, None), tmp_path / name)


def test_the_console_script() -> None:
    code = "from etcuda.runner import llm_main; llm_main()"
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: llm_runner")


def test_a_program_that_is_no_language_model(exported: Callable[[str, str], pathlib.Path]) -> None:
    done = run(exported("mlp-fp32", "host"), "--ids=1")
    assert done.returncode == 3
    assert "expected a language model that etcuda export wrote" in done.stderr


def test_rates() -> None:
    result = read_result(_LINES, 1e9)
    # In the middle of eight tokens behind four: eight and a half in all layers, six in those with a window.
    limit = 1e9 / (1000 + 10 * 8.5 + 100 * 6)
    assert result.rows == [BenchRow("pp16", 0, (16e6, 8e6), None), BenchRow("tg8", 4, (2e6,), limit)]
    assert result.rows[0].rate == 12e6
    assert result.rows[1].deviation == 0
    assert (result.load_seconds, result.first_step_seconds) == (0.5, 0.25)
    assert (result.weight_bytes, result.peak_bytes, result.gpu_used_bytes) == (3000, 77, 99)
    assert result.rows[0].first_token_ms == pytest.approx(0.0015)
    assert result.rows[1].first_token_ms is None
    assert {"weight_bytes": 3000, "first_step_seconds": 0.25}.items() <= result.to_json().items()
    assert read_result(_LINES, None).rows[1].limit is None
    assert read_result(_LINES.replace('"bandwidth_mbs": 0', '"bandwidth_mbs": 3'), None).rows[1].limit == pytest.approx(
        3e-3 * limit
    )


def test_a_picture(tmp_path: pathlib.Path) -> None:
    draw(read_result(_LINES, 1e9), tmp_path / "p.svg")
    assert "limit of the bandwidth" in (tmp_path / "p.svg").read_text()


def test_nothing_to_measure(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(tmp_path / "m.pte"), "-p", "", "-n", ""]) == 2
    assert "expected one test and one depth or more, got none" in capsys.readouterr().err
    assert main(["bench", str(tmp_path / "m.pte"), "-p", "1,x"]) == 2
    assert "--prompt: expected numbers with commas between them, got '1,x'" in capsys.readouterr().err
    assert main(["bench", str(tmp_path / "m.pte"), "-n", "0"]) == 2
    assert """--generate: expected numbers from 1 on, or "" for none, got '0'""" in capsys.readouterr().err
    assert main(["bench", str(tmp_path / "m.pte")]) == 2
    assert "m.pte: expected a program, got no such file. Make one with etcuda export." in capsys.readouterr().err
