"""The balancing strategies as request routers of Ray Serve. Every process that calls the model deployment has one."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from chatgrpo.gateway.balancing import STRATEGIES, Ledger, Strategy, Turn


class ReplicaRouter(RequestRouter):
    """`strategy` comes from the platform's settings. Requests are matched to the replica that was chosen for them, not
    first come first served: a conversation's replica is of no use to another conversation."""

    def initialize_state(self, strategy: str = Strategy.LEAST_CONNECTIONS) -> None:  # type: ignore[override]
        self._rank = STRATEGIES[Strategy(strategy)]
        self._ledger = Ledger()
        self._random = random.Random()
        # Routers that start together must not all begin with the same replica.
        self._number = self._random.randrange(2**20)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        if not candidate_replicas:
            return []
        if pending_request is not None:
            # Otherwise Serve asks again at once, and again, while all replicas are full.
            pending_request.routing_context.should_backoff = True
        by_id = {str(replica.replica_id): replica for replica in candidate_replicas}
        reports = {id_: replica.routing_stats or {} for id_, replica in by_id.items()}
        turn = Turn(
            number=self._number,
            now=time.monotonic(),
            draw=self._random.random(),
            session=session_of(pending_request.args) if pending_request is not None else None,
        )
        self._number += 1
        return [[by_id[candidate.id]] for candidate in self._rank(self._ledger.candidates(reports), turn)]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        self._ledger.routed(str(replica_id), pending_request.metadata.internal_request_id, now=time.monotonic())

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        self._ledger.completed(internal_request_id, now=time.monotonic())

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        self._ledger.keep_only(str(replica.replica_id) for replica in replicas)


def session_of(args: Sequence[Any]) -> str | None:
    """The conversation behind a call of `ChatModel.stream(model, messages, ...)`: the model and how it began, which
    stays the same from turn to turn. None for calls without messages."""
    if len(args) < 2:
        return None
    model, messages = args[0], args[1]
    return "\0".join([str(model), *(message.content for message in messages[:2])])
