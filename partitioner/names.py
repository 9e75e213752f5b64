"""Names of weights that PyTorch's graphs can hold."""

from __future__ import annotations

import ast
import keyword

from torch.export import ExportedProgram

from etcuda.errors import UnsupportedGraphError


def check_names(program: ExportedProgram) -> None:
    """Checks that the code which PyTorch writes for a graph reads every weight by its name.

    It stands between quotes there as it is, so a line feed ends the line, and what is no name would be code.

    Raises:
        UnsupportedGraphError: it does not.
    """
    signature = program.graph_signature
    tables = (signature.inputs_to_parameters, signature.inputs_to_buffers, signature.inputs_to_lifted_tensor_constants)
    for name in [name for table in tables for name in table.values()]:
        if not all(_is_readable(part) for part in name.split(".")):
            raise UnsupportedGraphError(
                f"weight {name!a}: expected names without line breaks, double quotes, backslashes and null "
                "characters, which are no keywords of Python, got one that the code which PyTorch writes for a graph "
                "cannot hold. Give the weight, or the module that it is in, another name."
            )


def _is_readable(part: str) -> bool:
    if part.isidentifier():
        return not keyword.iskeyword(part)
    try:
        return bool(ast.literal_eval(f'"{part}"') == part)
    except (SyntaxError, ValueError):
        return False
