"""Ray Serve's choice of a replica: the one that has the conversation's beginning, or the least busy."""

from __future__ import annotations

from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from etcuda.serve.job import Job
from etcuda.serve.prefix import PrefixTable, prefix_keys


class PrefixRouter(RequestRouter):  # type: ignore[misc]  # Ray has no types here.
    """For deployments whose method takes a ``Job``."""

    def initialize_state(self, **_keywords: Any) -> None:
        """Called by Ray before the first request."""
        self._table = PrefixTable()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Ranks of replicas. Of a rank Ray takes the least busy; of the next, if those of the first are full."""
        if pending_request is None:
            return [candidate_replicas]
        # Ray waits a little before it asks again.
        pending_request.routing_context.should_backoff = True
        names = {each.replica_id.unique_id: each for each in candidate_replicas}
        best = self._table.find(_keys(pending_request), names)
        if best is None:
            return [candidate_replicas]
        return [[names[best]], [each for name, each in names.items() if name != best]]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Called by Ray when a replica was chosen."""
        self._table.note(_keys(pending_request), replica_id.unique_id)


def _keys(request: PendingRequest) -> tuple[bytes, ...]:
    job = request.args[0] if request.args else None
    return prefix_keys(job.text()) if isinstance(job, Job) else ()
