"""AOTInductor's container, which stands in every wrapper: taken out, so that it is compiled once for all of them.

The wrapper of a model begins with the C interface and, behind it, the templates that load constants and run models:
three quarters of what the compiler does for a small model, and the same for each.
"""

from __future__ import annotations

import functools
import pathlib

import torch._inductor.codegen as codegen

_MODEL = "AOTInductorModelBase<AOTInductorModel>"


@functools.cache
def _interface() -> str:
    return (pathlib.Path(codegen.__file__).parent / "aoti_runtime" / "interface.cpp").read_text()


def split_container(wrapper: str) -> tuple[str, str | None]:
    """Splits the container from AOTInductor's wrapper source.

    Returns:
        The wrapper without the container, and the container's source, in which nothing of the model stands. They are
        linked together. A wrapper that is not made as expected comes back whole, with ``None``.
    """
    before, found, after = wrapper.partition(_interface())
    # What stands before are includes of the device, the same for all models.
    known = all(line.startswith("#include") or not line.strip() for line in before.splitlines())
    if not found or not known or "AOTInductorModelBase" not in _model_header():
        return wrapper, None
    defined = f"\nnamespace torch::aot_inductor {{\ntemplate class {_MODEL};\n}}\n"
    return before + _declarations() + after, before + _interface() + defined


@functools.cache
def _declarations() -> str:
    includes = [line for line in _interface().splitlines() if line.startswith("#include")]
    return "\n".join([*includes, "", f"namespace torch::aot_inductor {{\nextern template class {_MODEL};\n}}\n"])


@functools.cache
def _model_header() -> str:
    include = pathlib.Path(codegen.__file__).parents[2] / "include"
    return (include / "torch" / "csrc" / "inductor" / "aoti_runtime" / "model.h").read_text()
