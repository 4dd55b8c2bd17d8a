"""Conversation shards: named, detached, restartable actors that keep hot conversations decoded in memory.

A shard owns no data. Everything acknowledged is in the store, whose compare-and-set decides between writers, so a
restarted shard goes on where the store says, and the number of shards may change at any time: which shard answers for
a conversation is a matter of warm caches only.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from ulid import ULID

from actors.names import CONVERSATION_SHARD, NAMESPACE
from actors.reporting import report_process
from chatgrpo.config import PlatformConfig
from chatgrpo.errors import PlatformError, Unavailable
from chatgrpo.messages import Message
from chatgrpo.monitoring.history import Row
from chatgrpo.monitoring.process import observe_process
from chatgrpo.monitoring.tracing import carrier, trace_operation
from chatgrpo.monitoring.usage import cache_rows, count_act
from chatgrpo.state.conversation import Appended, Conversation, Page, Window
from chatgrpo.state.conversations import Conversations
from chatgrpo.state.export import Include, export_lines
from chatgrpo.state.feedback import Feedback
from chatgrpo.state.history import Turn
from chatgrpo.state.opening import open_platform_conversations
from chatgrpo.state.snapshots import Restored, Snapshot

SWEEP_S: Final = 60.0
ASKABLE: Final = frozenset(
    {
        "append",
        "create",
        "create_snapshot",
        "delete",
        "delete_snapshot",
        "feedback",
        "fork",
        "get",
        "list",
        "list_snapshots",
        "opinions",
        "ping",
        "prefetch",
        "read",
        "read_recent",
        "restore_snapshot",
        "rollback",
        "set_context",
    }
)


class ConversationShard:
    """`Conversations` in an actor, plus the sweep of idle ones."""

    async def __init__(self, platform: PlatformConfig) -> None:  # type: ignore[misc]  # Ray awaits it on the actor's loop
        observe_process(platform, "store")
        self._conversations: Conversations = await open_platform_conversations(platform)
        self._reporting = report_process(self._cache_rows)
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep_forever())

    async def ask(
        self, method: str, args: tuple[Any, ...], options: dict[str, Any], trace: dict[str, str] | None = None
    ) -> Any:
        if method not in ASKABLE:
            raise AttributeError(f"a conversation shard has no method {method}")
        call = partial(getattr(self._conversations, method), *args, **options)
        if not trace:  # a probe, or nobody traces
            answer = await call()
        else:
            with trace_operation(f"conversation.{method}", component="store", parent=trace):
                answer = await call()
        count_act(method, options)
        return answer

    def _cache_rows(self) -> list[Row]:
        tiers = self._conversations.tiers
        return cache_rows("conversation", num_hits=tiers.num_hits, num_misses=tiers.num_misses)

    async def pid(self) -> int:
        """The actor's process, for tests that kill it."""
        return os.getpid()

    async def drain(self) -> None:
        """Writes out what waits and stops taking calls, before the shard is taken away."""
        self._sweeper.cancel()
        self._reporting.cancel()
        await self._conversations.close()

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            try:
                await self._conversations.sweep()
            except Unavailable:
                continue  # the store will be back; idle conversations can wait


def start_conversation_shards(platform: PlatformConfig, num_shards: int | None = None) -> list[Any]:
    """Handles of shards 0 to num_shards - 1 (by default as many as the settings say), made where missing; shards beyond
    are drained and ended. Call it on the head node: the embedded store is a file there. Blocks until every shard
    answers."""
    num_shards = platform.state.num_shards if num_shards is None else num_shards
    options: dict[str, Any] = {}
    if platform.redis_url is None:
        here = ray.get_runtime_context().get_node_id()
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(here, soft=False)
    shards: list[Any] = [
        ray.remote(ConversationShard)
        .options(
            name=f"{CONVERSATION_SHARD}{number}",
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            max_task_retries=3,
            num_cpus=0,
            max_concurrency=1000,
            **options,
        )
        .remote(platform)
        for number in range(num_shards)
    ]
    ray.get([shard.pid.remote() for shard in shards])
    for name in shard_names():
        if int(name.removeprefix(CONVERSATION_SHARD)) >= num_shards:
            extra = ray.get_actor(name, namespace=NAMESPACE)
            ray.get(extra.drain.remote())
            ray.kill(extra)
    return shards


def shard_names() -> list[str]:
    """The shards that run, in rising order."""
    named = ray.util.list_named_actors(all_namespaces=True)
    return sorted(
        actor["name"]
        for actor in named
        if actor["namespace"] == NAMESPACE and actor["name"].startswith(CONVERSATION_SHARD)
    )


def choose_shard(conversation_id: str, names: Sequence[str]) -> str:
    """Rendezvous hashing: when a shard comes or goes, only the conversations it gains or had move."""
    return max(names, key=lambda name: hashlib.blake2b(f"{name} {conversation_id}".encode(), digest_size=8).digest())


class ConversationClient:
    """The methods of `Conversations`, each answered by the shard that keeps the conversation warm. `options` are the
    keyword arguments of the method of the same name. A call repeated over a restart of a shard happens once."""

    def __init__(self) -> None:
        self._handles: dict[str, Any] = {}

    async def create(self, conversation_id: str | None = None, **options: Any) -> Conversation:
        conversation_id = conversation_id or str(ULID())
        return await self._write(conversation_id, "create", **options)  # type: ignore[no-any-return]

    async def get(self, conversation_id: str, **options: Any) -> Conversation:
        return await self._ask(conversation_id, "get", **options)  # type: ignore[no-any-return]

    async def append(self, conversation_id: str, messages: Sequence[Message], **options: Any) -> Appended:
        return await self._write(conversation_id, "append", tuple(messages), **options)  # type: ignore[no-any-return]

    async def set_context(self, conversation_id: str, context: Mapping[str, Any], **options: Any) -> Appended:
        return await self._write(conversation_id, "set_context", context, **options)  # type: ignore[no-any-return]

    async def read_recent(self, conversation_id: str, **options: Any) -> Window:
        return await self._ask(conversation_id, "read_recent", **options)  # type: ignore[no-any-return]

    async def read(self, conversation_id: str, **options: Any) -> tuple[Turn, ...]:
        return await self._ask(conversation_id, "read", **options)  # type: ignore[no-any-return]

    async def list(self, *, tenant: str, **options: Any) -> Page:
        key = str(options.get("user_id") or tenant)
        return await self._call(key, "list", (), {"tenant": tenant, **options})  # type: ignore[no-any-return]

    async def delete(self, conversation_id: str, **options: Any) -> None:
        await self._ask(conversation_id, "delete", **options)

    async def fork(self, conversation_id: str, **options: Any) -> Conversation:
        options["new_id"] = options.get("new_id") or str(ULID())
        return await self._write(conversation_id, "fork", **options)  # type: ignore[no-any-return]

    async def rollback(self, conversation_id: str, to_version: int, **options: Any) -> Appended:
        return await self._write(conversation_id, "rollback", to_version, **options)  # type: ignore[no-any-return]

    async def feedback(self, conversation_id: str, version: int, **options: Any) -> Feedback:
        return await self._ask(conversation_id, "feedback", version, **options)  # type: ignore[no-any-return]

    async def opinions(self, conversation_id: str, *, tenant: str) -> dict[int, Feedback]:
        return await self._ask(conversation_id, "opinions", tenant=tenant)  # type: ignore[no-any-return]

    def export(
        self, *, tenant: str, user_id: str | None = None, include: Include = Include.FEEDBACK
    ) -> AsyncIterator[dict[str, Any]]:
        return export_lines(self, tenant=tenant, user_id=user_id, include=include)

    async def create_snapshot(self, *, tenant: str, **options: Any) -> Snapshot:
        return await self._call(tenant, "create_snapshot", (), {"tenant": tenant, **options})  # type: ignore[no-any-return]

    async def list_snapshots(self, *, tenant: str) -> Sequence[Snapshot]:
        return await self._call(tenant, "list_snapshots", (), {"tenant": tenant})  # type: ignore[no-any-return]

    async def restore_snapshot(self, snapshot_id: str, *, tenant: str, **options: Any) -> Restored:
        options["tenant"] = tenant
        return await self._call(tenant, "restore_snapshot", (snapshot_id,), options)  # type: ignore[no-any-return]

    async def delete_snapshot(self, snapshot_id: str, *, tenant: str) -> None:
        await self._call(tenant, "delete_snapshot", (snapshot_id,), {"tenant": tenant})

    async def prefetch(self, *, tenant: str, user_id: str, limit: int = 4) -> int:
        """Every shard warms what it would be asked for; here: the newest conversations, each on its own shard."""
        page = await self.list(tenant=tenant, user_id=user_id, limit=limit)
        await asyncio.gather(*(self.get(found.id, tenant=tenant) for found in page.conversations))
        return len(page.conversations)

    async def ping(self) -> None:
        await self._call("", "ping", (), {})

    async def _ask(self, conversation_id: str, method: str, *args: Any, **options: Any) -> Any:
        return await self._call(conversation_id, method, (conversation_id, *args), options)

    async def _write(self, conversation_id: str, method: str, *args: Any, **options: Any) -> Any:
        # The id is made here, so that a call that Ray repeats on a restarted shard is the same write.
        options["append_id"] = options.get("append_id") or str(ULID())
        return await self._ask(conversation_id, method, *args, **options)

    async def _call(self, route: str, method: str, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        name = self._choose(route)
        try:
            return await self._handles[name].ask.remote(method, args, options, carrier())
        except RayTaskError as error:
            if isinstance(error.cause, PlatformError):
                raise error.cause from None
            raise
        except RayActorError as error:
            self._handles.clear()
            if name not in shard_names():
                return await self._call(route, method, args, options)  # that shard was taken away; others answer
            raise Unavailable("the conversation store is restarting; try again in a moment") from error

    def _choose(self, route: str) -> str:
        if not self._handles:
            self._handles = {name: ray.get_actor(name, namespace=NAMESPACE) for name in shard_names()}
        if not self._handles:
            raise Unavailable("no conversation store runs; start the platform with `chatgrpo serve`")
        return choose_shard(route, list(self._handles))
