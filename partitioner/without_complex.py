"""Complex numbers become pairs of reals before ExecuTorch, which has no complex operators to speak of, sees them."""

from __future__ import annotations

import warnings

from torch.export.exported_program import ExportedProgram

from etcuda.options import BackendConfig
from etcuda.passes.complex_numbers.rewrite import ComplexError, complex_to_pairs, has_complex


def without_complex(program: ExportedProgram, config: BackendConfig) -> ExportedProgram:
    """The program without complex numbers, or the program itself, with a warning where that is not possible.

    Args:
        program: from ``torch.export.export``; not changed.
        config: target and options.
    """
    if not has_complex(program):
        return program
    try:
        return complex_to_pairs(program, config)
    except ComplexError as error:
        warnings.warn(
            f"this program's complex numbers are left to ExecuTorch: {error}. Expected real inputs and outputs, and "
            "between them operators that etcuda knows for complex numbers.",
            UserWarning,
            stacklevel=2,
        )
        return program
