"""The smallest export: a two-layer network, for a GPU, on any machine.

Run ``python examples/export_mlp.py [host | sm_90 | ...] [mlp.pte]``.
"""

from __future__ import annotations

import sys

import torch
from executorch.exir import to_edge_transform_and_lower

from etcuda import CudaPartitioner


def main(target: str = "auto", path: str = "mlp.pte") -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 64)).eval()
    exported = torch.export.export(model, (torch.randn(8, 64),))
    program = to_edge_transform_and_lower(exported, partitioner=[CudaPartitioner(target)]).to_executorch()
    program.save(path)
    print(f"wrote {path}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
