"""Trains the language model on the novels, and writes it as transformers does.

    python -m examples.language_model.train [--device cuda]

A Llama of 2.9 million weights: 4 layers of width 256, 4 heads of 64 over 2 of keys and values, tied embeddings. A step
takes 16 windows of 256 tokens, each a begin token and text from anywhere in a chapter; 1200 steps read the text more
than four times. A step takes 0.85 s of one thread of a processor with bf16 instructions, so all of them 17 minutes.
Weights are kept in fp32 while they are trained, and written in bf16. Seeds are fixed; the last digits depend on the
device. It goes on from where it was stopped: ``--state`` is the file for that.
"""

from __future__ import annotations

import argparse
import math
import pathlib
import time

import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from examples.language_model.text import Split, chapters
from examples.language_model.tokenizer import MAX_LENGTH, train_tokenizer

CHECKPOINT = pathlib.Path(__file__).parent / "checkpoint"
SEED = 20261130
STEPS, BATCH = 1200, 16
PEAK_RATE, WARMUP, WEIGHT_DECAY = 3e-3, 50, 0.1
SAVE_EVERY = 25
console = Console()


def config_for(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """The model's sizes."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=MAX_LENGTH,
        rope_theta=10000.0,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def encode(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> list[Tensor]:
    """Each text's ids with the end token behind them, [length] int64."""
    return [
        torch.tensor([*ids, tokenizer.eos_token_id])
        for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    ]


def windows(texts: list[Tensor], count: int, begin: int, generator: torch.Generator) -> Tensor:
    """Windows from anywhere in the texts, each behind a begin token, [count, MAX_LENGTH + 1] int64."""
    stream = torch.cat(texts)
    start = torch.randint(0, len(stream) - MAX_LENGTH, (count, 1), generator=generator)
    window = stream[start + torch.arange(MAX_LENGTH)]
    return torch.cat([torch.full((count, 1), begin), window], 1)


def device_of(model: LlamaForCausalLM) -> torch.device:
    """Where the model lies."""
    found: torch.device = next(model.parameters()).device
    return found


def rate(step: int) -> float:
    """Linear warm-up, then a cosine down to a hundredth of the peak."""
    if step < WARMUP:
        return PEAK_RATE * (step + 1) / WARMUP
    return PEAK_RATE * (0.01 + 0.495 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP))))


def loss_of(model: LlamaForCausalLM, window: Tensor) -> Tensor:
    """Mean cross entropy of each next token; products in bf16."""
    with torch.autocast(window.device.type, torch.bfloat16):
        logits = model(window[:, :-1], use_cache=False).logits
    return functional.cross_entropy(logits.float().flatten(0, 1), window[:, 1:].flatten())


def held_out_loss(model: LlamaForCausalLM, texts: list[Tensor], begin: int) -> float:
    """Of sixteen windows of the held-out chapters, the same at each call."""
    model.eval()
    with torch.no_grad():
        window = windows(texts, BATCH, begin, torch.Generator().manual_seed(SEED))
        loss = float(loss_of(model, window.to(device_of(model))))
    model.train()
    return loss


def optimizer_of(model: LlamaForCausalLM) -> torch.optim.AdamW:
    """Matrices decay, norms do not."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    norms = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": norms, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95))


def train(model: LlamaForCausalLM, split: Split, tokenizer: PreTrainedTokenizerFast, state: pathlib.Path) -> None:
    """Fits the model; every ``SAVE_EVERY`` steps it writes what it needs to go on into ``state``."""
    texts, held_out = encode(split.train, tokenizer), encode(split.held_out, tokenizer)
    begin: int = tokenizer.bos_token_id
    optimizer, first = optimizer_of(model), 0
    if state.is_file():
        saved = torch.load(state, weights_only=True, map_location=device_of(model))
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    console.print(f"{sum(map(len, texts))} tokens to train on, {sum(map(len, held_out))} held out; step {first}")
    for step in range(first, STEPS):
        generator = torch.Generator().manual_seed(SEED + step)
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        loss = loss_of(model, windows(texts, BATCH, begin, generator).to(device_of(model)))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == STEPS:
            seen = held_out_loss(model, held_out, begin)
            console.print(
                f"step {step + 1}: loss {loss.item():.3f}, held out {seen:.3f}, {time.process_time():.0f} s",
                highlight=False,
            )
            partial = state.with_suffix(".partial")
            torch.save(
                {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1},
                partial,
            )
            partial.replace(state)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: pathlib.Path) -> None:
    """Writes the checkpoint: configuration, weights in bf16, tokenizer and template."""
    model.to("cpu", torch.bfloat16).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=pathlib.Path, default=CHECKPOINT, help="folder of the checkpoint")
    parser.add_argument("--state", type=pathlib.Path, default=pathlib.Path("training.pt"), help="file to go on from")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    split = chapters()
    tokenizer = train_tokenizer(split.train)
    model = LlamaForCausalLM(config_for(tokenizer)).to(arguments.device).train()
    train(model, split, tokenizer, arguments.state)
    save(model, tokenizer, arguments.output)


if __name__ == "__main__":
    main()
