"""A replica that takes its time, so that what happens meanwhile happens meanwhile."""

from __future__ import annotations

import time
from typing import Any

from etcuda.serve.deployment import Replica


class SlowReplica(Replica):
    """Sleeps before each call of the program."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        program = self._engine._model.program
        run = program.run

        def slowly(*given: Any) -> Any:
            time.sleep(0.03)
            return run(*given)

        program.run = slowly  # type: ignore[method-assign]
