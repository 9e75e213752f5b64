"""Configurations, and the integers that operators take of their launches."""

from __future__ import annotations

import pytest

import etcuda.kernels  # noqa: F401  defines the operators
from etcuda.kernels.formats.registry import formats
from etcuda.kernels.linear.choose.configs import MatmulConfig, MatmulLaunch, MatvecConfig, MatvecLaunch


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("resident", [0, 1])
def test_launches_of_few_tokens(resident: int, quantized: bool) -> None:
    config = MatvecConfig(int(quantized), resident, 4, 128, 8, 2, 3)
    how = config.launch(2, 132, 1)
    assert how == MatvecLaunch(quantized, 2, 3 * 132 * resident, 4, 128, 8, 2, 1)
    integers = how.to_args()
    # Kernels that take quantized activations are never resident.
    assert MatvecLaunch.from_args(quantized, *integers).to_args() == integers
    assert len(integers) == (6 if quantized else 7)
    if not quantized:
        assert MatvecLaunch.from_args(quantized, *integers) == how


def test_launches_of_many_tokens() -> None:
    how = MatmulConfig(64, 32, 8, 4, 3, 2, 96, 1).launch(132, 1)
    assert how == MatmulLaunch(64, 32, 8, 4, 3, 264, 96, 1, 1)
    assert MatmulLaunch.from_args(*how.to_args()) == how


def test_the_operators_take_the_integers_of_a_launch() -> None:
    served = [record for record in formats() if {"matvec", "matmul"} <= record.kernels]
    assert {"int4", "int8"} <= {record.name for record in served}
    for record in served:
        for op, names in (
            (record.matvec_op, MatvecLaunch.names(False)),
            (record.matvec_quantized_op, MatvecLaunch.names(True)),
            (record.matmul_op, MatmulLaunch.names()),
            (record.matmul_reordered_op, MatmulLaunch.names()),
        ):
            # Products of few tokens have the gate's activation behind them.
            every = [argument for argument in op._schema.arguments if argument.name != "activation"]
            arguments = every[-len(names) :]
            assert tuple(argument.name for argument in arguments) == names
            assert {str(argument.type) for argument in arguments} == {"int"}
