"""Keywords that have another name now: the old one is an error that says so."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from etcuda.errors import OptionError

F = TypeVar("F", bound=Callable[..., Any])


def renamed_keyword(old: str, new: str) -> Callable[[F], F]:
    """Decorates a function or a class whose keyword ``old`` is called ``new`` now.

    Raises:
        OptionError: what is decorated is called with ``old``.
    """

    def decorate(function: F) -> F:
        owner: Any = function
        called: Callable[..., Any] = vars(owner)["__init__"] if isinstance(owner, type) else function
        name = owner.__qualname__.removesuffix(".__new__")

        @functools.wraps(called)
        def checked(*args: Any, **kwargs: Any) -> Any:
            if old in kwargs:
                value = kwargs[old]
                raise OptionError(f"{name}: {old}: expected it under its new name, {new}. Write {new}={value!r}.")
            return called(*args, **kwargs)

        if not isinstance(owner, type):
            return checked  # type: ignore[return-value]
        setattr(owner, "__init__", checked)  # noqa: B010  mypy knows it as a method
        return function

    return decorate
