"""Trains the decoder on ``sonnets.txt`` until it knows the poems by heart, and writes ``weights.safetensors``.

Run ``python examples/decoder/train.py``. The seed is fixed; on one thread it takes about a quarter of an hour.
Weights are stored in fp16, which halves the file and changes no token of the greedy continuation.
"""

from __future__ import annotations

import argparse
import math
import os
import pathlib
import sys
import time

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch.nn import functional as F

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2]))
from examples.decoder.model import WEIGHTS, Decoder, decode, encode, load_decoder

TEXT = pathlib.Path(__file__).parent / "sonnets.txt"
PROMPT = "Shall I compare thee to a summer's day?\n"
SEED = 20261121
STEPS, BATCH, LENGTH = 2000, 8, 256
PEAK_RATE, WARMUP = 3e-3, 100


def rate(step: int) -> float:
    """Linear warm-up, then a cosine down to a hundredth of the peak."""
    if step < WARMUP:
        return PEAK_RATE * (step + 1) / WARMUP
    return PEAK_RATE * (0.01 + 0.495 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP))))


def train(model: Decoder, text: torch.Tensor, progress: Progress) -> None:
    """Fits the next byte on random windows of the text."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    generator = torch.Generator().manual_seed(SEED)
    task = progress.add_task("train", total=STEPS, loss=float("nan"))
    for step in range(STEPS):
        start = torch.randint(0, text.numel() - LENGTH, (BATCH, 1), generator=generator)
        window = text[start + torch.arange(LENGTH + 1)]
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        logits = model.training_logits(window[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        progress.update(task, advance=1, loss=loss.item())
        if step % 100 == 0:
            print(f"step {step}  loss {loss.item():.4f}  {time.process_time():.0f} s", flush=True)


def greedy(model: Decoder, prompt: str, count: int) -> str:
    """The continuation of ``prompt`` by ``count`` tokens."""
    tokens = encode(prompt)
    length = len(tokens)
    model.reset()
    with torch.no_grad():
        logits = model(torch.tensor([tokens]), torch.arange(length))
        for position in range(length, length + count):
            tokens.append(int(logits.argmax()))
            logits = model(torch.tensor([tokens[-1:]]), torch.tensor([position]))
    return decode(tokens[length:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=pathlib.Path, default=WEIGHTS)
    output: pathlib.Path = parser.parse_args().output
    from safetensors.torch import save_file

    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    model = Decoder()
    torch.nn.init.normal_(model.embedding.weight, std=0.05)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("loss {task.fields[loss]:.3f}"))
    with Progress(*columns, TimeRemainingColumn()) as progress:
        train(model.train(), torch.frombuffer(bytearray(TEXT.read_bytes()), dtype=torch.uint8).long(), progress)
    state = {name: p.detach().half() for name, p in model.named_parameters()}
    partial = output.with_suffix(".partial")
    save_file(state, partial)
    os.replace(partial, output)
    if output == WEIGHTS:
        print(greedy(load_decoder(), PROMPT, 240))


if __name__ == "__main__":
    main()
