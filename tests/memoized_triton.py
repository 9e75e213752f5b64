"""What Triton's interpreter does anew for every call and operator though nothing comes of it: done once, or not at all.

Half of the processor time of an interpreted kernel. What a kernel computes stays as it is.
"""

from __future__ import annotations

from typing import Any

import triton.language as tl
from triton.runtime import interpreter


def install() -> None:
    """For the process; the interpreter must be on."""
    _patch_the_language_once()
    _check_no_overflow_in_vain()
    _know_dtypes()


def _patch_the_language_once() -> None:
    """A kernel's launch patches the language; each function that the kernel calls patched it again, to the same."""
    patch = interpreter._patch_lang
    patched: set[int] = set()

    def patch_once(function: Any) -> Any:
        modules = {id(value) for value in function.__globals__.values() if value is tl or value is tl.core}
        if modules and modules <= patched:
            return interpreter._LangPatchScope()
        scope, before = patch(function), frozenset(patched)
        patched.update(modules)
        restore = scope.restore

        def restore_all() -> None:
            restore()
            patched.intersection_update(before)

        scope.restore = restore_all
        return scope

    interpreter._patch_lang = patch_once


def _check_no_overflow_in_vain() -> None:
    """Sums and products of integers are computed once more in 64 bits, for an assertion that is off."""
    options = interpreter.interpreter_builder.options
    assert not options.debug
    object.__setattr__(options, "sanitize_overflow", False)


def _know_dtypes() -> None:
    """A table of all dtypes is made for each look-up."""
    look_up, known = interpreter._get_np_dtype, {}

    def look_up_once(dtype: Any) -> Any:
        name = dtype.scalar.name
        if name not in known:
            known[name] = look_up(dtype)
        return known[name]

    interpreter._get_np_dtype = look_up_once
