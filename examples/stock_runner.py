"""Runs a language model with ExecuTorch's own text runner.

::

    etcuda export checkpoint -o m.pte
    python examples/stock_runner.py m.pte -p "Shall I compare thee"
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Callable

import executorch.extension.llm.runner as runner

import etcuda.runtime  # noqa: F401  registers the delegate


def generate(
    program: pathlib.Path,
    prompt: str,
    max_new_tokens: int,
    temperature: float = 0.0,
    tokenizer: pathlib.Path | None = None,
    take: Callable[[str], None] = print,
) -> str:
    """Continues a prompt.

    Args:
        program: the ``.pte`` that ``etcuda export`` wrote; its ``.ptd`` lies beside it, if it has one.
        prompt: the text.
        max_new_tokens: most tokens of the answer.
        temperature: 0 takes the likeliest token.
        tokenizer: folder with ``tokenizer.json``; ``None`` for ``m.tokenizer``.
        take: called with each piece.

    Returns:
        The answer.
    """
    weights = program.with_suffix(".ptd")
    folder = program.with_suffix(".tokenizer") if tokenizer is None else tokenizer
    loaded = runner.TextLLMRunner(str(program), str(folder), str(weights) if weights.is_file() else None)
    pieces: list[str] = []

    def each(piece: str) -> None:
        pieces.append(piece)
        take(piece)

    config = runner.GenerationConfig(
        echo=False, max_new_tokens=max_new_tokens, temperature=temperature, num_bos=0, num_eos=0
    )
    loaded.generate(prompt, config, each)
    return "".join(pieces)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("program", type=pathlib.Path)
    parser.add_argument("-p", "--prompt", required=True)
    parser.add_argument("-n", "--max-new-tokens", type=int, default=50)
    parser.add_argument("--temperature", type=float, default=0.0)
    given = parser.parse_args()
    generate(
        given.program,
        given.prompt,
        given.max_new_tokens,
        given.temperature,
        take=lambda piece: print(piece, end="", flush=True),
    )
    print()


if __name__ == "__main__":
    main()
