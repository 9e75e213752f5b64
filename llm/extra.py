"""What the commands for language models share: nothing here needs the packages of the extra."""

from __future__ import annotations

import importlib.util

from etcuda.errors import CheckpointError, OptionError

_NEEDED = ("transformers", "tokenizers", "jinja2")


def require_llm(command: str) -> None:
    """Checks that the packages of the extra are there.

    Raises:
        OptionError: one is missing.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise OptionError(
            f"{command}: expected the packages {', '.join(_NEEDED)}, got none of the name {', '.join(missing)}. "
            "Run: pip install 'etcuda[llm]'"
        )


def readable(nbytes: float) -> str:
    """Bytes with a unit, such as ``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.2f} GiB"


def quant_rule(text: str) -> tuple[str, str]:
    """``NAME=FORMAT`` in two.

    Raises:
        CheckpointError: it is not that.
    """
    name, equals, wanted = text.rpartition("=")
    if not equals or not name:
        raise CheckpointError(f"--quant-rule: expected a name and a format, such as lm_head=int8, got {text!r}.")
    return name, wanted
