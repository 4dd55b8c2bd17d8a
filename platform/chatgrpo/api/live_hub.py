"""Looks at topics while somebody reads them, and hands every event to all who do. One hub a process.

A topic is looked at once, however many read it; an event is encoded once. After its last reader has left a topic is
looked at for `LINGER_S` more, so that who reconnects by then has missed nothing.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from ulid import ULID

from chatgrpo.api.live_sources import Source, channels_of
from chatgrpo.errors import PlatformError, RateLimited
from chatgrpo.monitoring.catalog import LIVE_EVENTS
from chatgrpo.monitoring.event_log import EventLog, LiveEvent
from chatgrpo.monitoring.meters import PROCESS

logger = logging.getLogger(__name__)

LINGER_S = 60.0
# Each is a question to the job scheduler every second.
MAX_TOPICS = 500
# After so many readers the others of the process get their turn.
_TURN = 200


class Reader(Protocol):
    """Whoever gets events. `offer` returns at once and never raises."""

    owner: str

    def offer(self, text: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """Where a reader begins. Not `resumed`: `events` are snapshots of how things are."""

    resumed: bool
    last_event_id: str
    events: tuple[str, ...]


class _Watch:
    """One topic being looked at."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.readers: dict[Reader, None] = {}
        self.num_joining = 0
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[None] | None = None

    @property
    def is_wanted(self) -> bool:
        return bool(self.readers or self.num_joining)


class LiveHub:
    """`source_of` makes the source of a topic. `interval_s` replaces the sources' own, for tests."""

    def __init__(
        self, source_of: Callable[[str], Source], *, interval_s: float | None = None, linger_s: float = LINGER_S
    ) -> None:
        self._source_of, self._interval_s, self._linger_s = source_of, interval_s, linger_s
        self._log = EventLog(str(ULID()))
        self._watches: dict[str, _Watch] = {}
        # Events reach every reader in the order of their ids, or a reader's last id would say too much.
        self._in_order = asyncio.Lock()

    async def subscribe(self, reader: Reader, topics: Sequence[str], last_event_id: str | None) -> Beginning:
        """From here on `reader` is offered every event of `topics`. Raises what the first look at a topic raises."""
        watches = {topic: self._watched(topic) for topic in dict.fromkeys(topics)}
        for watch in watches.values():
            watch.num_joining += 1
        try:
            for watch in watches.values():
                await asyncio.shield(watch.ready)
            async with self._in_order:
                for watch in watches.values():
                    watch.readers[reader] = None
                return self._beginning(reader.owner, watches, last_event_id)
        finally:
            for watch in watches.values():
                watch.num_joining -= 1

    def unsubscribe(self, reader: Reader, topics: Sequence[str]) -> None:
        for topic in topics:
            if topic in self._watches:
                self._watches[topic].readers.pop(reader, None)

    def _watched(self, topic: str) -> _Watch:
        watch = self._watches.get(topic)
        if watch is None:
            if len(self._watches) >= MAX_TOPICS:
                raise RateLimited(f"{MAX_TOPICS} topics are being followed here, the most possible; try again", 10.0)
            watch = self._watches[topic] = _Watch(self._source_of(topic))
            watch.task = asyncio.create_task(self._run(topic, watch))
        return watch

    def _beginning(self, owner: str, watches: dict[str, _Watch], last_event_id: str | None) -> Beginning:
        if last_event_id is not None:
            channels = {channel for topic in watches for channel in channels_of(topic, owner)}
            replay = self._log.after(last_event_id, topics=watches, channels=channels)
            if replay.is_complete:
                missed = tuple(message_of(event) for event in replay.events)
                return Beginning(resumed=True, last_event_id=self._log.last_id, events=missed)
        snapshots = tuple(
            _message(topic, self._log.last_id, json.dumps(watch.source.snapshot(owner)), is_snapshot=True)
            for topic, watch in watches.items()
        )
        return Beginning(resumed=False, last_event_id=self._log.last_id, events=snapshots)

    async def _run(self, topic: str, watch: _Watch) -> None:
        loop = asyncio.get_running_loop()
        try:
            try:
                await watch.source.look()
            except PlatformError as error:
                watch.ready.set_exception(error)
                return
            self._log.begin(topic)
            watch.ready.set_result(None)
            idle_since = loop.time()
            while watch.is_wanted or loop.time() - idle_since < self._linger_s:
                idle_since = loop.time() if watch.is_wanted else idle_since
                await asyncio.sleep(watch.source.interval_s if self._interval_s is None else self._interval_s)
                await self._look(topic, watch)
        finally:
            self._log.end(topic)
            if self._watches.get(topic) is watch:
                del self._watches[topic]
            if not watch.ready.done():
                watch.ready.cancel()
            # Nobody may be waiting for what went wrong.
            with suppress(asyncio.CancelledError):
                watch.ready.exception()

    async def _look(self, topic: str, watch: _Watch) -> None:
        try:
            changes = await watch.source.look()
        except PlatformError as error:
            logger.debug("topic=%s: %s", topic, error.message)
            return
        except Exception:
            # A topic that cannot be told now may be told at the next look; its readers stay.
            logger.exception("topic=%s", topic)
            return
        for change in changes:
            await self._publish(topic, watch, change.channel, change.data)

    async def _publish(self, topic: str, watch: _Watch, channel: str, data: dict[str, Any]) -> None:
        async with self._in_order:
            event = self._log.add(topic, channel, json.dumps(data))
            PROCESS.of(LIVE_EVENTS).inc(topic=topic.partition(":")[0])
            text = message_of(event)
            may_read: dict[str, bool] = {}
            for number, reader in enumerate(list(watch.readers)):
                owner = reader.owner
                if owner not in may_read:
                    may_read[owner] = channel in channels_of(topic, owner)
                if may_read[owner]:
                    reader.offer(text)
                if number % _TURN == _TURN - 1:
                    await asyncio.sleep(0)


def message_of(event: LiveEvent) -> str:
    """As a socket shows it."""
    return _message(event.topic, event.id, event.text)


def _message(topic: str, event_id: str, text: str, *, is_snapshot: bool = False) -> str:
    head = json.dumps({"type": "event", "topic": topic, "id": event_id, "snapshot": is_snapshot})
    # The data is JSON already; parsing it for each reader would be work for nothing.
    return f'{head[:-1]}, "data": {text}}}'
