"""The command ``etcuda``; also ``python -m etcuda`` and ``python -m etcuda.cli``.

One file a command, imported when the command is called. A new command is a file with a ``command`` and a row in
``COMMANDS``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import click

import etcuda
from etcuda.cli.group import LazyGroup

# Module below etcuda.cli, and the line that --help shows for it.
COMMANDS = {
    "bench": "Measure a language model's prompt and generation rates.",
    "export": "Make a program of a language model's checkpoint.",
    "generate": "Continue a prompt, or answer a conversation.",
    "inspect": "Tell what a .pte holds: targets, kernels, values, weights.",
    "plan": "Tell what a language model will take on a GPU.",
    "serve": "Answer clients of OpenAI's interface.",
    "tune": "Measure a kernel family's configurations on the local GPU.",
    "weights": "Make the weights of a program that was exported without them.",
    "worker": "Answer lines of JSON, for ExecuTorch's LLM server.",
}


@click.group(cls=LazyGroup, commands_in=__name__, summaries=COMMANDS, context_settings={"max_content_width": 100})
@click.version_option(etcuda.__version__, prog_name="etcuda", message="%(prog)s %(version)s")
def cli() -> None:
    """A CUDA backend for ExecuTorch."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status, 2 for an error that the user can act on."""
    # PyTorch's words to the makers of torchao, before the figures of every command that loads a program.
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    try:
        cli.main(args=None if arguments is None else list(arguments), prog_name="etcuda")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0
