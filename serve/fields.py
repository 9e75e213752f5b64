"""Reading fields of a request's JSON: each refusal says which, what was expected and what was got."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
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
        inside: what stands before a field's name in messages, of an object within the request's.
    """

    def __init__(self, body: Mapping[str, Any], inside: str = "") -> None:
        self._body, self._inside = body, inside

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
            raise refuse(self._inside + name, f"a number, at least {low:g}{most}", value)
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
            raise refuse(self._inside + name, f"a whole number, at least {low}{most}", value)
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
            raise refuse(self._inside + name, "true or false", value)
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
            raise refuse(self._inside + name, f"a text or a list of at most {most}", value)
        if not all(isinstance(each, str) and each for each in listed):
            raise refuse(self._inside + name, "texts that are not empty", value)
        return tuple(listed)

    def only(self, name: str, *allowed: Any) -> None:
        """Checks a field of which a few values are served; to ignore others would answer something else.

        Raises:
            ApiError: it has another.
        """
        value = self.get(name)
        if value is not None and not any(value == each and type(value) is type(each) for each in allowed):
            expected = " or ".join(["none", *(repr(each) for each in allowed)])
            raise refuse(self._inside + name, expected, value, "unsupported_parameter")

    def known(self, names: Iterable[str], others: Iterable[str] = ()) -> None:
        """Checks that there are no other fields than these; one that nobody reads may have been meant to matter.

        Args:
            names: of the fields that are served.
            others: of those that are looked at by themselves.

        Raises:
            ApiError: there are; the first is named.
        """
        there = {*names, *others}
        left = [name for name, value in self._body.items() if name not in there and value is not None]
        if left:
            expected = f"no such field, but {', '.join(names)}"
            name = f"{self._inside}{left[0]}"
            got = f"one with the value {str(self._body[left[0]])[:40]!r}"
            raise ApiError(400, f"{name}: expected {expected}, got {got}. Leave it out.", name, "unsupported_parameter")
