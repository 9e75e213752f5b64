"""Reading fields of a request's JSON: each refusal says which, what was expected and what was got."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from etcuda.serve.errors import ApiError


def refuse(name: str, expected: str, got: Any, code: str | None = None) -> ApiError:
    """The error for a field of another value than was expected."""
    shown = repr(got)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return ApiError(400, f"{name}: expected {expected}, got {shown}. Correct it, or leave it out.", name, code)


class Fields:
    """The fields of one object; those that are null count as left out.

    Args:
        body: the object.
    """

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._body = body

    def get(self, name: str) -> Any:
        """A field, or ``None``."""
        return self._body.get(name)

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """A number from ``low`` to ``high``.

        Raises:
            ApiError: it is something else.
        """
        value = self.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            most = "" if math.isinf(high) else f", at most {high:g}"
            raise refuse(name, f"a number, at least {low:g}{most}", value)
        return float(value)

    def integer(self, name: str, low: int, high: int | None = None) -> int | None:
        """A whole number from ``low`` to ``high``, or ``None`` if it is left out.

        Raises:
            ApiError: it is something else.
        """
        value = self.get(name)
        if value is None:
            return None
        wrong = isinstance(value, bool) or not isinstance(value, int) or value < low
        if wrong or (high is not None and value > high):
            most = "" if high is None else f", at most {high}"
            raise refuse(name, f"a whole number, at least {low}{most}", value)
        return int(value)

    def flag(self, name: str) -> bool:
        """True or false, which is the default.

        Raises:
            ApiError: it is something else.
        """
        value = self.get(name)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise refuse(name, "true or false", value)
        return value

    def texts(self, name: str, most: int) -> tuple[str, ...]:
        """A text or a list of at most so many; none of them empty.

        Raises:
            ApiError: it is something else.
        """
        value = self.get(name)
        if value is None:
            return ()
        listed = [value] if isinstance(value, str) else value
        if not isinstance(listed, list) or len(listed) > most:
            raise refuse(name, f"a text or a list of at most {most}", value)
        if not all(isinstance(each, str) and each for each in listed):
            raise refuse(name, "texts that are not empty", value)
        return tuple(listed)

    def only(self, name: str, *allowed: Any) -> None:
        """Checks a field of which a few values are served; to ignore others would answer something else.

        Raises:
            ApiError: it has another.
        """
        value = self.get(name)
        if value is not None and not any(value == each and type(value) is type(each) for each in allowed):
            expected = " or ".join(["none", *(repr(each) for each in allowed)])
            raise refuse(name, expected, value, "unsupported_parameter")
