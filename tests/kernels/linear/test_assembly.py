"""The inline PTX of the int4 and int8 kernels, executed here: Triton's interpreter runs plain code in its place."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable

import numpy
import pytest

from etcuda.kernels.linear.triton import dequantize

_SOURCE = pathlib.Path(dequantize.__file__).read_text()
_BODIES = re.findall(r'"""\{\n(.*?)\}"""', _SOURCE, re.DOTALL)
Pair = numpy.ndarray


def halves(word: int) -> Pair:
    """The two fp16 of a word, in double precision."""
    return numpy.array([word & 0xFFFF, word >> 16], dtype=numpy.uint16).view(numpy.float16).astype(numpy.float64)


def word_of(pair: Pair | list[float]) -> int:
    bits = numpy.asarray(pair, dtype=numpy.float64).astype(numpy.float16).view(numpy.uint16)
    return int(bits[0]) | int(bits[1]) << 16


def permuted(a: int, b: int, selector: int) -> int:
    data = a.to_bytes(4, "little") + b.to_bytes(4, "little")
    return int.from_bytes(bytes(data[(selector >> 4 * i) & 7] for i in range(4)), "little")


def lop3(a: int, b: int, c: int, table: int) -> int:
    found = 0
    for bit in range(32):
        index = (a >> bit & 1) << 2 | (b >> bit & 1) << 1 | (c >> bit & 1)
        found |= (table >> index & 1) << bit
    return found


_INSTRUCTIONS: dict[str, Callable[..., int]] = {
    "lop3.b32": lop3,
    "shr.u32": lambda a, b: a >> b,
    "xor.b32": lambda a, b: a ^ b,
    "mov.b32": lambda a: a,
    "prmt.b32": permuted,
    "sub.rn.f16x2": lambda a, b: word_of(halves(a) - halves(b)),
    "mul.rn.f16x2": lambda a, b: word_of(halves(a) * halves(b)),
    "fma.rn.f16x2": lambda a, b, c: word_of(halves(a) * halves(b) + halves(c)),
}


def execute(body: str, results: int, *operands: int) -> list[list[float]]:
    """Runs PTX with ``operands`` as what follows the results; the results as pairs of fp16."""
    registers = {f"${results + index}": value for index, value in enumerate(operands)}
    for line in filter(None, map(str.strip, body.split("\n"))):
        if line.startswith(".reg"):
            continue
        name, rest = line.rstrip(";").split(None, 1)
        target, *sources = (each.strip() for each in rest.split(","))
        values = [registers[each] if each in registers else int(each, 0) for each in sources]
        registers[target] = _INSTRUCTIONS[name](*values)
    return [list(halves(registers[f"${index}"])) for index in range(results)]


def constant(pattern: str) -> int:
    (found,) = re.findall(pattern, _SOURCE)
    return int(found, 0) & 0xFFFFFFFF


def fp16(value: float) -> float:
    return float(numpy.float16(value))


def test_all_assembly_is_known() -> None:
    assert len(_BODIES) == 4
    assert [body.count("fma") for body in _BODIES] == [2, 0, 6, 2]


@pytest.mark.parametrize("seed", range(20))
def test_weights(seed: int) -> None:
    random = numpy.random.default_rng(seed)
    word, zero = int(random.integers(0, 1 << 32)), int(random.integers(0, 256))
    scale, minimum = fp16(random.normal() * 0.1), fp16(random.normal())
    times, plus = word_of([scale, scale]), word_of([minimum, minimum])
    bytes_minimum, bytes_plain, words_minimum, words_plain = _BODIES
    low = [word >> 8 * i & 15 for i in range(4)]
    high = [word >> 8 * i + 4 & 15 for i in range(4)]
    pairs = [[low[0], low[2]], [low[1], low[3]], [high[0], high[2]], [high[1], high[3]]]
    signed = [int(each) for each in numpy.frombuffer(word.to_bytes(4, "little"), dtype=numpy.int8)]

    def expected(integers: list[list[int]], shift: int, added: float) -> list[list[float]]:
        return [[fp16((q - shift) * scale + added) for q in pair] for pair in integers]

    assert execute(words_minimum, 4, word, plus, times, plus) == expected(pairs, 0, minimum)
    shifted, moved = word_of([1024 + zero] * 2), word_of([-64 - zero] * 2)
    assert execute(words_plain, 4, word, shifted, times, moved) == expected(pairs, zero, 0.0)
    # What the kernel holds for symmetric weights.
    shifted, moved = constant(r"tl\.full\(s\.shape, (0x\w+), tl\.int32\)"), constant(r"s\.shape, (-\d+), tl\.int32")
    assert execute(words_plain, 4, word, shifted, times, moved) == expected(pairs, 8, 0.0)
    both = [signed[:2], signed[2:]]
    assert execute(bytes_minimum, 2, word, times, plus) == expected(both, 0, minimum)
    assert execute(bytes_plain, 2, word, times, plus) == expected(both, 0, 0.0)
