"""Turns addresses away that behave like an attack: guessing keys, probing paths, flooding with broken bodies.

Each offence gives points, points fade by half every `half_life_s`, and at `threshold` the address is blocked; every
further block is twice as long until the offences have faded. Each replica judges what it sees itself: a flood meets
all of them. Addresses that share one door (a proxy that is not trusted) share its points, so proxies belong into
`trusted_proxies`.
"""

from __future__ import annotations

import ipaddress
import logging
from collections import OrderedDict
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache

from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatgrpo.clock import Clock
from chatgrpo.errors import PlatformError
from chatgrpo.gateway.authenticate import presented_key
from chatgrpo.gateway.client_address import Network
from chatgrpo.gateway.config import ThreatConfig
from chatgrpo.gateway.key_format import key_id_of
from chatgrpo.gateway.refusal import refuse
from chatgrpo.monitoring.catalog import BLOCKS, OFFENCES, TURNED_AWAY
from chatgrpo.monitoring.meters import Meter

logger = logging.getLogger(__name__)

# Addresses remembered by one process; the longest unseen goes first.
MAX_ADDRESSES = 20_000


class Blocked(PlatformError):
    """The refusal says no more than it must."""

    status = 403
    code = "blocked"


class Offence(StrEnum):
    WRONG_KEY = "wrong_key"
    MALFORMED_KEY = "malformed_key"
    UNKNOWN_PATH = "unknown_path"
    BAD_BODY = "bad_body"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What is held against an address, as of `at` (seconds of a monotonic clock)."""

    points: float = 0.0
    num_blocks: float = 0.0
    blocked_until: float = 0.0
    at: float = 0.0


def faded(record: Record, now: float, config: ThreatConfig) -> Record:
    """Blocks are forgotten ten times slower than points, and nothing is while one lasts."""
    age = max(0.0, now - max(record.at, record.blocked_until)) / config.half_life_s
    return replace(record, points=record.points * 0.5**age, num_blocks=record.num_blocks * 0.5 ** (age / 10), at=now)


def judge(record: Record, points: float, now: float, config: ThreatConfig) -> Record:
    """The record after an offence. A new block takes the points away: they have been paid for."""
    record = faded(record, now, config)
    record = replace(record, points=record.points + points)
    if record.points < config.threshold:
        return record
    block_s = min(config.max_block_s, config.block_s * 2 ** round(record.num_blocks))
    return replace(record, points=0.0, num_blocks=record.num_blocks + 1, blocked_until=now + block_s)


def offence_of(status: int, key: str | None) -> Offence | None:
    """What an answer says about its request."""
    if status == 401 and key is not None:
        return Offence.WRONG_KEY if key_id_of(key) else Offence.MALFORMED_KEY
    if status in {400, 413, 415, 422, 431}:
        return Offence.BAD_BODY
    return None


class ThreatWatch:
    """Records of addresses. The counters of offences and blocks are on `registry`."""

    def __init__(self, config: ThreatConfig, *, clock: Clock, registry: CollectorRegistry | None = None) -> None:
        self._config = config
        self._clock = clock
        self._records: OrderedDict[str, Record] = OrderedDict()
        self._offences = Meter(OFFENCES, registry, None)
        self._blocks = Meter(BLOCKS, registry, None)
        self._turned_away = Meter(TURNED_AWAY, registry, None)

    def is_blocked(self, address: str) -> bool:
        record = self._records.get(address)
        blocked = (record is not None and record.blocked_until > self._clock.monotonic()) or is_in(
            address, self._config.blocked
        )
        if blocked:
            self._turned_away.inc()
        return blocked

    def report(self, address: str, offence: Offence) -> None:
        self._offences.inc(kind=offence)
        if is_in(address, self._config.never_blocked):
            return
        now = self._clock.monotonic()
        before = self._records.pop(address, Record(at=now))
        after = self._records[address] = judge(before, getattr(self._config, offence), now, self._config)
        if after.blocked_until > max(now, before.blocked_until):
            self._blocks.inc()
            logger.warning("blocked address=%s for_s=%.0f offence=%s", address, after.blocked_until - now, offence)
        if len(self._records) > MAX_ADDRESSES:
            self._records.popitem(last=False)


class TurnAway:
    """ASGI middleware: refuses blocked addresses, and reports what answers say about the others."""

    def __init__(self, app: ASGIApp, *, watch: ThreatWatch) -> None:
        self.app = app
        self.watch = watch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        address = scope["state"]["address"]
        if self.watch.is_blocked(address):
            await refuse(Blocked("requests from your address are refused for now"), scope, receive, send)
            return

        async def watched(message: Message) -> None:
            if message["type"] in {"http.response.start", "websocket.http.response.start"}:
                self._look(scope, address, message["status"])
            await send(message)

        await self.app(scope, receive, watched)

    def _look(self, scope: Scope, address: str, status: int) -> None:
        if status == 404 and "route" not in scope:
            self.watch.report(address, Offence.UNKNOWN_PATH)
        elif status >= 400 and (offence := offence_of(status, presented_key(scope))):
            self.watch.report(address, offence)


def is_in(address: str, networks: tuple[Network, ...]) -> bool:
    parsed = _parsed(address) if networks else None
    return parsed is not None and any(parsed in network for network in networks)


@lru_cache(maxsize=4096)
def _parsed(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(address)
    except ValueError:
        return None
