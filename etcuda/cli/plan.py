"""``etcuda plan CHECKPOINT --gpu h200``."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from etcuda.llm.extra import quant_rule, readable, require_llm

if TYPE_CHECKING:
    from etcuda.llm.plan import MemoryPlan


@click.command(short_help="Tell what a language model will take on a GPU.")
@click.argument("checkpoint", type=click.Path(path_type=pathlib.Path))
@click.option("--gpu", required=True, help="h200, a100, b200 and so on, or an architecture such as sm_90")
@click.option("--memory-gib", type=click.FloatRange(min=0, min_open=True), help="of the GPU  [default: of that name]")
@click.option("--bandwidth-gbs", type=click.FloatRange(min=0, min_open=True), help="of its memory, 10^9 bytes a second")
@click.option("--dtype", default="auto", show_default=True, help="auto, bf16, fp16, fp32")
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
    "--cache",
    type=click.Choice(["auto", "bf16", "int8", "fp8", "tq4"]),
    default="auto",
    show_default=True,
    help="of keys and values: auto is the dtype of activations",
)
@click.option("--verify-rows", default=0, show_default=True, help="as of etcuda export: 2 to 16 tokens")
@click.option("--rollback", default=0, show_default=True, help="as of etcuda export: 0 to 15 tokens")
@click.option("--json", "as_json", is_flag=True, help="everything as JSON")
def command(
    checkpoint: pathlib.Path,
    gpu: str,
    memory_gib: float | None,
    bandwidth_gbs: float | None,
    dtype: str,
    max_seq_len: int | None,
    chunk: int,
    quant: str,
    rules: tuple[str, ...],
    group_size: int,
    cache: str,
    verify_rows: int,
    rollback: int,
    as_json: bool,
) -> None:
    """Tell what a language model will take: CHECKPOINT is a folder with config.json, or a GGUF file. Weights are not
    read.

    Ends with status 1 if the GPU does not hold it.
    """
    require_llm("plan")
    from etcuda.llm.export import ExportOptions
    from etcuda.llm.plan import find_gpu, plan
    from etcuda.llm.quantization import QuantOptions

    device = find_gpu(gpu)
    if memory_gib is not None:
        device = dataclasses.replace(device, total_memory=int(memory_gib * 2**30))
    if bandwidth_gbs is not None:
        device = dataclasses.replace(device, memory_bandwidth=bandwidth_gbs * 1e9)
    formats = QuantOptions(quant, tuple(map(quant_rule, rules)), group_size)
    options = ExportOptions(
        dtype=dtype,
        max_seq_len=4096 if max_seq_len is None else max_seq_len,
        shortens=max_seq_len is None,
        chunk=chunk,
        quant=formats,
        cache=cache,
        verify_rows=verify_rows,
        rollback=rollback,
    )
    made = plan(checkpoint, device, options)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(made) | {"fits": made.fits}, indent=1))
    else:
        click.echo("\n".join(_text(made)))
    click.get_current_context().exit(0 if made.fits else 1)


def _text(made: MemoryPlan) -> Iterator[str]:
    yield f"{made.architecture} on {made.gpu}, {readable(made.device_bytes)}"
    yield f"  weights      {readable(made.weight_bytes)}, of which a token reads {readable(made.decode_weight_bytes)}"
    tokens = made.max_seq_len
    yield f"  caches       {readable(made.cache_bytes)} for {tokens} tokens, for the program and for each session"
    if made.checkpoint_bytes:
        yield f"  of these     {readable(made.checkpoint_bytes)} are recurrent states of tokens before the last one"
    yield f"  activations  {readable(made.activation_bytes)}, an estimate"
    yield f"  peak         {readable(made.peak_bytes)} with one session"
    yield f"  driver       {readable(made.driver_bytes)} beside that, an estimate"
    for tokens, limit in made.limits.items():
        yield f"  limit        {limit:.1f} tok/s behind {tokens} tokens"
    if made.fits:
        yield f"It fits, up to --max-seq-len {made.fits_max_seq_len}."
    elif made.fits_max_seq_len:
        yield f"It does not fit. Pass --max-seq-len {made.fits_max_seq_len} or less."
    else:
        yield "It does not fit: the weights alone are too large. Quantise them, or take a larger GPU."
