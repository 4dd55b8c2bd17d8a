"""What was said lately on the live channels, with ids, so that a reader who comes back gets what he missed."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass

# An hour of a busy job's steps together with metrics every two seconds.
MAX_EVENTS = 4096
MAX_CHARS = 16 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveEvent:
    """`topic` is what a reader asked for, `channel` narrows it to those who may read it. `text` is JSON."""

    id: str
    seq: int
    topic: str
    channel: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """`is_complete`: the events are all that came after the id; else something between is gone."""

    events: tuple[LiveEvent, ...]
    is_complete: bool


class EventLog:
    """A ring of events. Ids are `epoch-number`: one epoch a process, numbers rising by one. An id of another epoch says
    nothing here, so its reader is told that he may have missed something."""

    def __init__(self, epoch: str, *, max_events: int = MAX_EVENTS, max_chars: int = MAX_CHARS) -> None:
        self._epoch, self._max_events, self._max_chars = epoch, max_events, max_chars
        self._events: deque[LiveEvent] = deque()
        self._num_chars = self._seq = 0
        # From which number on every event of a topic is here. A topic that is not there is not watched.
        self._whole_since: dict[str, int] = {}

    @property
    def last_id(self) -> str:
        return self._id(self._seq)

    def begin(self, topic: str) -> None:
        """From now on every event of the topic is added. Takes a number: the last id of somebody who left before says
        nothing about what happened until now."""
        if topic not in self._whole_since:
            self._seq += 1
            self._whole_since[topic] = self._seq

    def end(self, topic: str) -> None:
        """Nobody looks at the topic any more: what happens there is not known."""
        self._whole_since.pop(topic, None)

    def add(self, topic: str, channel: str, text: str) -> LiveEvent:
        self._seq += 1
        event = LiveEvent(id=self._id(self._seq), seq=self._seq, topic=topic, channel=channel, text=text)
        self._events.append(event)
        self._num_chars += len(text)
        # The newest event stays, however long it is.
        while len(self._events) > 1 and (len(self._events) > self._max_events or self._num_chars > self._max_chars):
            gone = self._events.popleft()
            self._num_chars -= len(gone.text)
            if gone.topic in self._whole_since:
                self._whole_since[gone.topic] = max(self._whole_since[gone.topic], gone.seq)
        return event

    def after(self, event_id: str, *, topics: Iterable[str], channels: Collection[str]) -> Replay:
        """What came on `channels` after the event with this id, which a reader of `topics` saw last."""
        seq = self._seq_of(event_id)
        if seq is None or any(self._whole_since.get(topic, self._seq + 1) > seq for topic in topics):
            return Replay(events=(), is_complete=False)
        found = tuple(event for event in self._events if event.seq > seq and event.channel in channels)
        return Replay(events=found, is_complete=True)

    def _id(self, seq: int) -> str:
        return f"{self._epoch}-{seq}"

    def _seq_of(self, event_id: str) -> int | None:
        epoch, _, number = event_id.rpartition("-")
        if epoch != self._epoch or not number.isascii() or not number.isdecimal() or len(number) > 18:
            return None
        return int(number) if int(number) <= self._seq else None
