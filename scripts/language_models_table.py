"""Makes docs/llm-architectures.md: exports small random models of every named architecture, and compares their answers
with transformers' own, in fp32 on the host.

    python scripts/language_models_table.py                  # all of them: half an hour on two idle cores
    python scripts/language_models_table.py llama gpt_oss    # these; the results of the others stay
    python scripts/language_models_table.py --quick mixtral  # the last three columns alone: no export, half a minute
    python scripts/language_models_table.py --render         # docs/llm-architectures.md from its JSON file alone
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import tempfile
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

RESULTS = ROOT / "docs" / "llm-architectures.json"
PAGE = ROOT / "docs" / "llm-architectures.md"
_YES = ("chunks", "sessions", "gguf", "int4", "int8")
TOKENS, PROMPT, MAX_SEQ_LEN, CHUNK = 64, 20, 128, 16
# Of those that the tests write GGUF files of: their matrices as Q8_0, compared with the dequantised weights.
GGUF = ("llama", "qwen3")

INTRO = f"""# Architectures, compared

Small random models of {{count}} architectures, as transformers makes them, exported by `etcuda export --target host
--dtype fp32 --max-seq-len {MAX_SEQ_LEN} --chunk {CHUNK}` and run by `etcuda.llm`. `scripts/language_models_table.py`
writes this page from `llm-architectures.json`. Windows are of 8 tokens and their rings of {8 + CHUNK - 1}, which the
answers wrap several times.

- Greedy: tokens of {TOKENS} that are those of transformers' `generate`, behind a prompt of {PROMPT}.
- Chunks: whether a prompt of 60 tokens gives the same tokens in chunks of {CHUNK}, in chunks of 7 and one by one.
- Sessions: whether two conversations whose steps alternate give what each gives alone.
- GGUF: whether a file of the weights as Q8_0 gives the greedy tokens of its dequantised weights.
- int4, int8: whether the model that `--quant` exports has the logits of its dequantised weights, computed by PyTorch on
  the host in fp32, and of mixtures all experts are quantised.
- Partitions: the most that a method has when it is lowered for an H200 in int4; no operator is left to another backend.

What has no result was not tried.

| architecture | greedy | chunks | sessions | GGUF | int4 | int8 | partitions |
|---|---|---|---|---|---|---|---|
"""


def greedy_matches(model: Any, whole: Any) -> int:
    """How many tokens agree with transformers' from the first on."""
    from tests.llm.architectures import greedy, prompt

    made = model.generate(prompt(PROMPT), max_new_tokens=TOKENS, ignore_eos=True)
    made.text()
    expected = greedy(whole, prompt(PROMPT), TOKENS)
    if len(set(expected)) < 4:
        raise AssertionError(f"the model says too little to compare: {expected}")
    same = [got == token for got, token in zip(made.tokens, expected, strict=True)]
    return same.index(False) if False in same else len(same)


def chunks_agree(model: Any) -> bool:
    """Whether a prompt that is given at once, in parts and token by token has the same continuation."""
    from tests.llm.architectures import prompt

    tokens, answers = prompt(60, seed=1), []
    for step in (CHUNK, 7, 1):
        session = model.session()._session
        for end in range(step, len(tokens), step):
            session.prefill(tokens[:end], lambda: False)
        logits = session.prefill(tokens, lambda: False)
        answer = []
        for _ in range(12):
            answer.append(int(logits.argmax()))
            logits = session.decode(answer[-1])
        answers.append(answer)
    return answers[0] == answers[1] == answers[2]


def sessions_agree(model: Any) -> bool:
    """Whether two answers whose tokens alternate are those that each prompt has alone."""
    from tests.llm.architectures import prompt

    prompts = (prompt(21, seed=7), prompt(33, seed=8))

    def start(tokens: list[int]) -> Any:
        return model.session().generate(tokens, max_new_tokens=24, ignore_eos=True)

    alone = []
    for tokens in prompts:
        made = start(tokens)
        made.text()
        alone.append(made.tokens)
    together = [start(tokens) for tokens in prompts]
    for _ in range(24):
        for made in together:
            next(made, None)
    for made in together:
        made.text()
    return [made.tokens for made in together] == alone


def gguf_agrees(name: str, whole: Any, folder: pathlib.Path) -> bool:
    """Whether the program of a GGUF file says what transformers says with the file's dequantised weights."""
    from etcuda import llm
    from etcuda.kernels.weights.tensor import CoalescedTensor
    from etcuda.llm.export import ExportOptions, export
    from etcuda.llm.quantization import QuantOptions
    from tests.llm import test_gguf

    path = folder / "m.gguf"
    factors: dict[str, Any] = {"rope_freqs": test_gguf.llama3_factors(whole)} if name == "llama" else {}
    test_gguf.write(path, name, whole, **factors)
    for key, value in test_gguf.load(path).model.state_dict().items():
        if isinstance(value, CoalescedTensor):
            whole.get_parameter(key).copy_(value.dequantize())
    exact = QuantOptions(activation_dtype="exact")
    options = ExportOptions(target="host", dtype="fp32", max_seq_len=MAX_SEQ_LEN, chunk=CHUNK, quant=exact)
    export(path, folder / "gguf.pte", options)
    return greedy_matches(llm.load(folder / "gguf.pte"), whole) == TOKENS


def quantised_agrees(folder: pathlib.Path, whole: Any, quant: str) -> bool:
    """Whether a quantised model says what transformers says with its dequantised weights."""
    import torch

    from etcuda.kernels.weights.tensor import CoalescedTensor
    from tests.llm.dequantised import dequantised, load_quantised, logits, transformers_logits

    model = load_quantised(folder, quant)
    experts = [value for key, value in model.model.named_parameters() if key.endswith(("gate_up_proj", ".down_proj"))]
    got, wanted = logits(model), transformers_logits(dequantised(model.model, whole))
    close = torch.allclose(got, wanted, rtol=1e-3, atol=1e-3)
    return close and all(isinstance(value, CoalescedTensor) for value in experts)


class _CountedError(Exception):
    """How many partitions there are, and what was left: nothing is compiled."""


def partitions(folder: pathlib.Path) -> int:
    """The most partitions of a method, in int4 and bf16 for an H200; every operator is in one."""
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    from etcuda.llm.methods import export_methods
    from etcuda.partitioner.partitioner import CudaPartitioner, tag_program
    from tests.llm.dequantised import load_quantised

    class Counter(CudaPartitioner):
        def partition(self, exported_program: Any) -> Any:
            tags, report = tag_program(exported_program, self.config)
            raise _CountedError(len(tags), [str(each) for each in report.refusals])

    found = []
    for method, program in export_methods(load_quantised(folder, "int4", "bf16"), CHUNK, CHUNK).items():
        try:
            to_edge_transform_and_lower(
                {method: program}, partitioner=[Counter("sm_90", alone=True)],
                compile_config=EdgeCompileConfig(_check_ir_validity=False),
            )  # fmt: skip
        except _CountedError as counted:
            count, refusals = counted.args
            if refusals:
                raise AssertionError(f"{method}: expected every operator to be taken, got {refusals[0]}") from counted
            found.append(int(count))
    return max(found)


def compare_quickly(name: str) -> dict[str, Any]:
    """Of a row what needs no export."""
    from tests.llm.architectures import save

    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        whole = save(name, folder)
        # The layers of GPT-2 have transposed weights, which are not quantised.
        if name == "gpt2":
            return {}
        row: dict[str, Any] = {quant: quantised_agrees(folder, whole, quant) for quant in ("int4", "int8")}
        return row | {"partitions": partitions(folder)}


def compare(name: str) -> dict[str, Any]:
    """One row of the table."""
    from etcuda import llm
    from etcuda.llm.export import ExportOptions, export
    from tests.llm.architectures import save

    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        whole = save(name, folder / "checkpoint")
        options = ExportOptions(target="host", dtype="fp32", max_seq_len=MAX_SEQ_LEN, chunk=CHUNK)
        export(folder / "checkpoint", folder / "m.pte", options)
        model = llm.load(folder / "m.pte")
        row: dict[str, Any] = {"greedy": greedy_matches(model, whole)}
        row |= {"chunks": chunks_agree(model), "sessions": sessions_agree(model)}
        return row | ({"gguf": gguf_agrees(name, whole, folder)} if name in GGUF else {})


def render(rows: dict[str, Any]) -> str:
    """The page."""

    def cell(row: dict[str, Any], key: str) -> str:
        return ("yes" if row[key] else "**no**") if key in row else ""

    lines = []
    for name, row in rows.items():
        if "error" in row:
            lines.append(f"| {name} | {row['error']} | | | | | | |")
            continue
        greedy = row.get("greedy", "")
        same = f"{greedy}" if greedy in (TOKENS, "") else f"**{greedy}**"
        cells = " | ".join(cell(row, key) for key in _YES)
        lines.append(f"| {name} | {same} | {cells} | {row.get('partitions', '')} |")
    return INTRO.format(count=len(rows)) + "\n".join(lines) + "\n"


def main() -> int:
    """Compares, and writes the page. Returns 1 if an architecture differs."""
    from tests.llm.architectures import CONFIGS, EXPERTS, OTHERS, RECURRENT

    known = [*CONFIGS, *EXPERTS, *RECURRENT, *OTHERS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="ARCHITECTURE", help=f"of {', '.join(known)}; all by default")
    parser.add_argument("--render", action="store_true", help="write the page from the results that are there")
    parser.add_argument("--quick", action="store_true", help="compare what needs no export")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(known))
    if unknown:
        parser.error(f"expected architectures of {', '.join(known)}, got {', '.join(unknown)}")
    rows: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for name in () if arguments.render else arguments.names or known:
        print(f"{name} ...", flush=True)
        try:
            made = compare_quickly(name) if arguments.quick else compare(name) | compare_quickly(name)
            kept = {} if "error" in rows.get(name, {}) else rows.get(name, {})
            rows[name] = (kept if arguments.quick else {}) | made
        except Exception as error:  # A row of the table says what failed; the others are still of use.
            rows[name] = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        print(f"{name}: {rows[name]}", flush=True)
        ordered = {each: rows[each] for each in known if each in rows}
        RESULTS.write_text(json.dumps(ordered, indent=2) + "\n")
        PAGE.write_text(render(ordered))
    if arguments.render:
        PAGE.write_text(render(rows))
    wrong = [
        name
        for name, row in rows.items()
        if row.get("greedy", TOKENS) != TOKENS
        or "error" in row
        or not all(row.get(key, True) for key in _YES)
        or row.get("partitions", 1) != 1
    ]
    if wrong:
        print(f"expected the answers of transformers of all, got others of {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
