"""What is refused, as clients of OpenAI's interface read it."""

from __future__ import annotations

from typing import Any

from etcuda.errors import EtcudaError

INVALID, SERVER, OVERLOADED = "invalid_request_error", "server_error", "rate_limit_error"


class ApiError(EtcudaError):
    """A request that is refused, or fails.

    Args:
        status: of HTTP.
        message: what, expected, got and what to do.
        param: the field of the request.
        code: what programs compare.
        kind: the class of errors.
    """

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, kind: str = INVALID
    ) -> None:
        super().__init__(status, message, param, code, kind)
        self.status, self.message, self.param, self.code, self.kind = status, message, param, code, kind

    def __str__(self) -> str:
        return self.message

    def body(self) -> dict[str, Any]:
        """The error as JSON holds it."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def failed(message: str, code: str = "internal_error") -> ApiError:
    """The program, or what runs it, failed."""
    return ApiError(500, message, code=code, kind=SERVER)


def gone(message: str, code: str) -> ApiError:
    """What would answer is not there, or was and ended; the request may be sent again."""
    return ApiError(503, message, code=code, kind=SERVER)


def busy(waiting: int) -> ApiError:
    """The queue is full."""
    return ApiError(
        429,
        f"queue: expected fewer than {waiting} requests that wait, got as many. Send it again later, or serve with a "
        "larger --queue or more replicas.",
        code="queue_full",
        kind=OVERLOADED,
    )
