"""The same calls have the same results on every backend, and on a model that fits on a screen."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from ulid import ULID

from chatgrpo.errors import Conflict, PlatformError
from chatgrpo.messages import assistant
from chatgrpo.state.consistency import Consistency
from chatgrpo.state.conversations import Conversations
from chatgrpo.state.eviction import EvictionPolicy
from chatgrpo.state.memory import MemoryStore
from chatgrpo.state.redis import RedisStore
from chatgrpo.state.sqlite import SqliteStore
from chatgrpo.state.store import Store
from chatgrpo.state.tiered import TieredStore
from tests.fakes import FakeClock

TENANT = "t"
ids = st.sampled_from("abc")
levels = st.sampled_from(list(Consistency))


class Backends(RuleBasedStateMachine):
    """Every rule makes one call on all backends and compares the outcomes; `shown` says what each version of each
    conversation shows."""

    redis_url = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp())
        self.clock = FakeClock()
        self.shown: dict[str, list[tuple[str, ...]]] = {}
        self.snapshots: list[list[str]] = []
        self.number = 0

    @initialize()
    def open(self) -> None:
        self.prefix = f"{ULID()}:"
        self.backends = self.runner.run(self._open([MemoryStore()]))
        for name in "ab":
            self.create(name, "u")

    async def _open(self, memory: list[Store]) -> list[Conversations]:
        redis = await RedisStore.open(self.redis_url, prefix=self.prefix)
        opened = []
        for store in [*memory, SqliteStore(self.folder / "state.db"), redis]:
            # Small enough to evict all the time.
            tiers = TieredStore(store, capacity=2, eviction=EvictionPolicy.ADAPTIVE, clock=self.clock)
            await tiers.start()
            opened.append(Conversations(tiers, clock=self.clock))
        return opened

    def call(self, act: Callable[[Conversations], Awaitable[Any]]) -> Any:
        async def one(conversations: Conversations) -> Any:
            try:
                return await act(conversations)
            except PlatformError as error:
                return type(error), error.args[0], getattr(error, "current_version", None)

        outcomes = [self.runner.run(one(backend)) for backend in self.backends]
        assert outcomes[1:] == outcomes[:1] * (len(outcomes) - 1)
        return outcomes[0]

    @rule(name=ids, owner=st.sampled_from(["u", "v"]))
    def create(self, name: str, owner: str) -> None:
        async def act(c: Conversations) -> Any:
            made = await c.create(name, tenant=TENANT, user_id=owner, context={"k": 0})
            return made.to_dict()

        outcome = self.call(act)
        assert isinstance(outcome, dict) == (name not in self.shown)
        self.shown.setdefault(name, [()])

    @rule(name=ids, count=st.integers(1, 3), level=levels)
    def append_anyway(self, name: str, count: int, level: Consistency) -> None:
        self.append(name, count, None, level)

    @rule(name=ids, count=st.integers(1, 3))
    def append_to_newest(self, name: str, count: int) -> None:
        self.append(name, count, 0, Consistency.STRONG)

    @rule(name=ids, count=st.integers(1, 3), behind=st.sampled_from([None, 0, 1]), level=levels)
    def append(self, name: str, count: int, behind: int | None, level: Consistency) -> None:
        versions = self.shown.get(name, [()])
        expected = None if behind is None else max(0, len(versions) - 1 - behind)
        texts = [f"m{self.number + i}" for i in range(count)]
        self.number += count

        async def act(c: Conversations) -> Any:
            messages = [assistant(text) for text in texts]
            done = await c.append(name, messages, tenant=TENANT, expected_version=expected, level=level)
            await c.tiers.flush()  # or what is listed would depend on when the queue was written
            return done.version

        outcome = self.call(act)
        if name in self.shown and (expected is None or expected == len(versions) - 1):
            for text in texts:
                versions.append((*versions[-1], text))
            assert outcome == len(versions) - 1
        elif name in self.shown:
            assert outcome[0] is Conflict
            assert outcome[2] == len(versions) - 1

    @rule(name=ids, value=st.integers(0, 2))
    def set_context(self, name: str, value: int) -> None:
        async def act(c: Conversations) -> Any:
            return (await c.set_context(name, {"k": value}, tenant=TENANT)).version

        self.call(act)
        if name in self.shown:
            self.shown[name].append(self.shown[name][-1])

    @rule(name=ids, back=st.integers(-1, 6))
    def rollback(self, name: str, back: int) -> None:
        version = max(0, len(self.shown.get(name, [()])) - 1 - back)

        async def act(c: Conversations) -> Any:
            return (await c.rollback(name, version, tenant=TENANT)).version

        self.call(act)
        if version < len(self.shown.get(name, [])):
            self.shown[name].append(self.shown[name][version])

    @rule(name=ids, new=ids, back=st.integers(-1, 3))
    def fork(self, name: str, new: str, back: int) -> None:
        version = max(0, len(self.shown.get(name, [()])) - 1 - back)

        async def act(c: Conversations) -> Any:
            return (await c.fork(name, tenant=TENANT, at_version=version, new_id=new)).to_dict()

        self.call(act)
        if version < len(self.shown.get(name, [])) and new not in self.shown:
            texts = self.shown[name][version]
            self.shown[new] = [texts[:length] for length in range(len(texts) + 1)]

    @rule(name=ids)
    def delete(self, name: str) -> None:
        self.call(lambda c: c.delete(name, tenant=TENANT))
        self.shown.pop(name, None)

    @rule(name=ids, version=st.integers(1, 6), score=st.sampled_from([-1.0, 1.0]))
    def feedback(self, name: str, version: int, score: float) -> None:
        async def act(c: Conversations) -> Any:
            return (await c.feedback(name, version, tenant=TENANT, score=score)).to_dict()

        self.call(act)

    @rule(name=ids, most=st.integers(1, 5), tokens=st.sampled_from([None, 2, 1000]), level=levels)
    def read_recent(self, name: str, most: int, tokens: int | None, level: Consistency) -> None:
        async def act(c: Conversations) -> Any:
            window = await c.read_recent(name, tenant=TENANT, max_messages=most, max_tokens=tokens, level=level)
            return [turn.to_dict() for turn in window.turns], window.version, window.context, window.is_whole

        outcome = self.call(act)
        if name in self.shown and tokens != 2:
            assert [turn["content"] for turn in outcome[0]] == list(self.shown[name][-1][-most:])

    @rule(name=ids, version=st.integers(0, 12), after=st.integers(0, 5))
    def read_past(self, name: str, version: int, after: int) -> None:
        async def act(c: Conversations) -> Any:
            turns = await c.read(name, tenant=TENANT, after=after, at_version=version)
            return [turn.to_dict() for turn in turns]

        outcome = self.call(act)
        if after == 0 and version < len(self.shown.get(name, [])):
            assert [turn["content"] for turn in outcome] == list(self.shown[name][version])

    @rule(owner=st.sampled_from([None, "u", "v"]), cursor=st.sampled_from([None, "b"]), limit=st.integers(1, 3))
    def list(self, owner: str | None, cursor: str | None, limit: int) -> None:
        async def act(c: Conversations) -> Any:
            page = await c.list(tenant=TENANT, user_id=owner, cursor=cursor, limit=limit)
            return [found.to_dict() for found in page.conversations], page.cursor

        self.call(act)

    @rule()
    def take_snapshot(self) -> None:
        async def act(c: Conversations) -> Any:
            taken.append((snapshot := await c.create_snapshot(tenant=TENANT)).id)
            return dict(snapshot.versions)

        taken: list[str] = []
        assert self.call(act) == {name: len(versions) - 1 for name, versions in self.shown.items()}
        self.snapshots.append(taken)
        self.snapshot_shown = {name: versions[-1] for name, versions in self.shown.items()}

    @rule()
    def restore_last(self) -> None:
        if not self.snapshots:
            return
        names = {id(c): name for c, name in zip(self.backends, self.snapshots[-1], strict=True)}

        async def act(c: Conversations) -> Any:
            restored = await c.restore_snapshot(names[id(c)], tenant=TENANT)
            found = (await c.list(tenant=TENANT)).conversations
            return restored.num_changed, restored.num_emptied, restored.gone, {f.id: f.version for f in found}

        outcome = self.call(act)
        for name, version in outcome[3].items():
            if version == len(self.shown[name]):
                self.shown[name].append(self.snapshot_shown.get(name, ()))

    @rule()
    def reopen(self) -> None:
        async def close() -> None:
            for backend in self.backends[1:]:
                await backend.close()
            await self.backends[0].tiers.flush()

        self.runner.run(close())
        self.backends = self.runner.run(self._open([self.backends[0].tiers.store]))

    @rule()
    def export(self) -> None:
        async def act(c: Conversations) -> Any:
            return [line async for line in c.export(tenant=TENANT)]

        self.call(act)

    @invariant()
    def time_passes(self) -> None:
        self.clock.advance(1)

    def teardown(self) -> None:
        async def close() -> None:
            for backend in getattr(self, "backends", []):
                await backend.close()

        self.runner.run(close())
        self.runner.close()
        shutil.rmtree(self.folder)


def test_all_backends_agree(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backends, "redis_url", redis_url)
    run_state_machine_as_test(
        Backends,
        settings=settings(
            max_examples=40,
            stateful_step_count=50,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
