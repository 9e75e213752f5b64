"""``etcuda export CHECKPOINT -o m.pte``."""

from __future__ import annotations

import pathlib
import sys
from types import TracebackType

import click

from etcuda.errors import CheckpointError
from etcuda.llm.extra import quant_rule, readable, require_llm

_STAGES = {"trace": "tracing the model", "lower": "compiling", "write": "writing"}


@click.command(short_help="Make a program of a language model's checkpoint.")
@click.argument("checkpoint", type=click.Path(path_type=pathlib.Path))
@click.option("-o", "--output", type=click.Path(path_type=pathlib.Path), required=True, help="the program, m.pte")
@click.option("--target", default="auto", show_default=True, help="auto, host, portable, sm_90 and so on")
@click.option(
    "--dtype", default="auto", show_default=True, help="of weights, activations and caches: auto, bf16, fp16, fp32"
)
@click.option(
    "--max-seq-len",
    type=int,
    help="tokens of prompt and answer that the caches hold  [default: 4096, or the model's if fewer]",
)
@click.option("--chunk", default=512, show_default=True, help="most tokens of one call of prefill")
@click.option(
    "--quant", type=click.Choice(["none", "int4", "int8"]), default="none", show_default=True, help="of linear layers"
)
@click.option("--quant-rule", "rules", multiple=True, metavar="NAME=FORMAT", help="of modules of a name, with * and ?")
@click.option("--group-size", default=32, show_default=True, help="weights that share a scale")
@click.option(
    "--activations",
    type=click.Choice(["int8", "exact"]),
    default="int8",
    show_default=True,
    help="of quantised layers: int8 may be quantised too",
)
@click.option(
    "--cache",
    type=click.Choice(["auto", "bf16", "int8", "fp8", "tq4"]),
    default="auto",
    show_default=True,
    help="of keys and values: auto is the dtype of activations; tq4 is 4 bits, rotated",
)
@click.option("--random", "is_random", is_flag=True, help="seeded weights instead of the checkpoint's")
@click.option("--seed", default=0, show_default=True, help="of --random")
@click.option(
    "--weights",
    type=click.Choice(["ptd", "pte", "none"]),
    default="ptd",
    show_default=True,
    help="where the weights go; none: only how those of --random are made, for etcuda weights",
)
@click.option(
    "--tokenizer",
    "tokenizer_place",
    type=click.Choice(["beside", "inside"]),
    default="beside",
    show_default=True,
    help="in the folder m.tokenizer, which other runners read too, or in m.pte",
)
@click.option("--device-sampling", is_flag=True, help="add generate_step: decoding with sampling on the device")
@click.option("--verify-rows", default=0, show_default=True, help="add verify, which checks drafts: 2 to 16 tokens")
@click.option(
    "--rollback", default=0, show_default=True, help="tokens by which sessions of recurrent models can be taken back"
)
@click.option("--all-logits", is_flag=True, help="prefill gives the logits of every token, for perplexities")
def command(
    checkpoint: pathlib.Path,
    output: pathlib.Path,
    target: str,
    dtype: str,
    max_seq_len: int | None,
    chunk: int,
    quant: str,
    rules: tuple[str, ...],
    group_size: int,
    activations: str,
    cache: str,
    is_random: bool,
    seed: int,
    weights: str,
    tokenizer_place: str,
    device_sampling: bool,
    verify_rows: int,
    rollback: int,
    all_logits: bool,
) -> None:
    """Make a program of a language model: CHECKPOINT is a folder with config.json and safetensors files, or
    a GGUF file.

    Writes m.pte, its weights m.ptd, and its tokenizer, the folder m.tokenizer. No GPU is needed. With --random
    --weights none it writes m.weights.json in place of m.ptd, which etcuda weights makes of it, on any machine.
    """
    require_llm("export")
    if weights == "none" and not is_random:
        raise CheckpointError(
            "--weights none: expected --random with it, got a checkpoint's weights, which cannot be made elsewhere. "
            "Add --random, or leave it out."
        )
    from etcuda.llm.export import ExportOptions, export
    from etcuda.llm.quantization import QuantOptions
    from etcuda.options import CompileOptions

    options = ExportOptions(
        target=target,
        dtype=dtype,
        max_seq_len=4096 if max_seq_len is None else max_seq_len,
        shortens=max_seq_len is None,
        chunk=chunk,
        random_seed=seed if is_random else None,
        all_logits=all_logits,
        device_sampling=device_sampling,
        verify_rows=verify_rows,
        rollback=rollback,
        tokenizer_inside=tokenizer_place == "inside",
        quant=QuantOptions(quant, tuple(map(quant_rule, rules)), group_size, activations),
        cache=cache,
        write_weights=weights != "none",
        compile=CompileOptions.from_mapping({"weights": "ptd" if weights == "none" else weights}),
    )
    with _Progress() as progress:
        made = export(checkpoint, output, options, progress)
    click.echo(f"{made.architecture}: exported in {made.seconds:.0f} s")
    for file in made.files:
        click.echo(f"  {file}  {readable(file.stat().st_size)}")
    click.echo(
        f"at run time: weights {readable(made.weight_bytes)}, caches {readable(made.cache_bytes)} for "
        f"{made.max_seq_len} tokens, prompts in chunks of {made.chunk}"
    )
    if made.no_tokenizer:
        click.echo(f"no tokenizer: {made.no_tokenizer}")
    for method, operators in made.left_out.items():
        click.echo(f"left on the CPU in {method}: {', '.join(operators)}; the log says why")


class _Progress:
    """A bar of bytes while weights are read, a line a stage behind that; on standard error."""

    def __enter__(self) -> _Progress:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = Console(stderr=True)
        columns = (TextColumn("reading weights"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=self._console, disable=not sys.stderr.isatty())
        self._bar.start()
        self._task = self._bar.add_task("weights", total=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage == "weights":
            self._bar.update(self._task, completed=done, total=total)
            return
        # The compiler draws a bar of its own.
        self._bar.stop()
        self._console.print(_STAGES[stage])
