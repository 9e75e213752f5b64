"""``python -m etcuda.llm.weights_worker FILE DESCRIPTION``: writes the weights whose names come on standard input.

Prints the number of bytes of each piece that is written. Whoever started it and is gone ends it by the closed pipe.
"""

from __future__ import annotations

import json
import pathlib
import signal
import sys

import torch

from etcuda.llm.make_weights import write_weights
from etcuda.llm.weights_description import read


def main() -> int:
    """Writes the weights; returns 0."""
    # An interrupt goes to all processes of a terminal; the one that asked says when this one ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    torch.set_num_threads(1)
    path, description = map(pathlib.Path, sys.argv[1:])
    write_weights(path, read(description), json.load(sys.stdin), lambda count: print(count, flush=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
