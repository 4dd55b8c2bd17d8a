"""Applies the limits: which meters a request runs, one decision for all of them, and what the caller is told.

Every answer says how much is left, as `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers); a
refused one says when to come back.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from secrets import token_hex

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatgrpo.errors import RateLimited, Unavailable
from chatgrpo.gateway.config import LimitRule, RouteConfig
from chatgrpo.gateway.counters import Counters
from chatgrpo.gateway.identity import Identity
from chatgrpo.gateway.limits import Meter, Verdict
from chatgrpo.gateway.refusal import refuse
from chatgrpo.monitoring.catalog import LIMIT_REFUSALS
from chatgrpo.monitoring.meters import PROCESS

logger = logging.getLogger(__name__)

MAX_KNOWN = 4096


@dataclass(frozen=True, slots=True)
class _Meters:
    of_requests: list[Meter]
    of_tokens: list[Meter]

    @property
    def takes_lease(self) -> bool:
        return any(meter.window_s == 0 for meter in self.of_requests)


class MeterBook:
    """The meters of callers that were seen before: they are the same for every request of one to a row."""

    def __init__(self, rules: Sequence[LimitRule]) -> None:
        self._rules = rules
        self._known: dict[tuple[object, ...], _Meters] = {}

    def look_up(self, row: RouteConfig, identity: Identity, address: str) -> _Meters:
        key = (row.path, row.methods, row.rate_limit, identity.key_id, identity.tenant, address)
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            found = self._known[key] = _Meters(
                meters_of(self._rules, row, identity, address), token_meters_of(self._rules, row, identity, address)
            )
        return found


def meters_of(rules: Sequence[LimitRule], row: RouteConfig, identity: Identity, address: str) -> list[Meter]:
    """What a request is counted on; tokens come later, when it is known how many are asked for."""
    meters = []
    for rule in (rule for rule in rules if _applies(rule, row)):
        key = _key(rule, row, identity, address)
        for kind, limit, window_s in (
            ("requests", rule.requests, rule.window_s),
            ("burst", rule.burst, 1.0),
            ("parallel", rule.parallel, 0.0),
        ):
            if limit is not None:
                meters.append(_meter(rule, f"{key}|{kind}", limit, window_s))
    if row.rate_limit is not None:
        key = f"route|{_caller(identity, address)}|{row.methods[0]} {row.path}"
        meters.append(Meter(key=key, name="route", limit=row.rate_limit, window_s=60.0))
    return meters


def token_meters_of(rules: Sequence[LimitRule], row: RouteConfig, identity: Identity, address: str) -> list[Meter]:
    return [
        _meter(rule, f"{_key(rule, row, identity, address)}|tokens", rule.tokens, rule.window_s)
        for rule in rules
        if rule.tokens is not None and _applies(rule, row)
    ]


def _applies(rule: LimitRule, row: RouteConfig) -> bool:
    return not rule.routes or row.path in rule.routes


def _meter(rule: LimitRule, key: str, limit: int, window_s: float) -> Meter:
    return Meter(
        key=key,
        name=rule.name,
        limit=limit,
        window_s=window_s,
        is_shadow=rule.is_shadow,
        is_closed=rule.if_store_is_down == "closed",
    )


def _caller(identity: Identity, address: str) -> str:
    return identity.key_id or address


def _key(rule: LimitRule, row: RouteConfig, identity: Identity, address: str) -> str:
    parts = {
        "address": address,
        "caller": _caller(identity, address),
        "key": identity.key_id or "",
        "tenant": identity.tenant,
        "route": row.path,
    }
    return "|".join([rule.name, *(parts[name] for name in rule.per)])


class RateLimit:
    """ASGI middleware, behind authentication."""

    def __init__(self, app: ASGIApp, *, rules: Sequence[LimitRule], counters: Counters) -> None:
        self.app = app
        self.book = MeterBook(rules)
        self.counters = counters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        row, state = scope["route"], scope["state"]
        identity, address = state["identity"], state["address"]
        found = self.book.look_up(row, identity, address)
        state["tokens"] = TokenBudget(self.counters, found.of_tokens)
        meters = found.of_requests
        takes_lease = found.takes_lease
        lease = token_hex(16) if takes_lease else ""
        try:
            verdict = await _take(self.counters, meters, lease)
        except Unavailable as error:
            await refuse(error, scope, receive, send)
            return
        if verdict is not None and not verdict.is_admitted:
            PROCESS.of(LIMIT_REFUSALS).inc(limit=_refusing(verdict).name)
            await refuse(_refusal(verdict), scope, receive, send, headers=headers_of(verdict))
            return
        headers = [(name.encode(), value.encode()) for name, value in headers_of(verdict).items()] if verdict else []

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *headers]
            await send(message)

        if not takes_lease:
            await self.app(scope, receive, told)
            return
        try:
            await self.app(scope, receive, told)
        finally:
            await _release(self.counters, meters, lease)


async def _take(counters: Counters, meters: Sequence[Meter], lease: str) -> Verdict | None:
    """None: nothing is limited, or the counters are down and every rule lets pass then. Raises Unavailable when they
    are down and one does not."""
    if not meters:
        return None
    try:
        verdict = await counters.take(meters, lease=lease)
    except Unavailable as error:
        if any(meter.is_closed for meter in meters):
            raise
        logger.warning("requests pass uncounted: %s", error.message)
        return None
    for meter in verdict.over:
        if meter.is_shadow:
            PROCESS.of(LIMIT_REFUSALS).inc(limit=f"{meter.name} (shadow)")
            logger.info("shadow limit %s would refuse key=%s limit=%d", meter.name, meter.key, meter.limit)
    return verdict


async def _release(counters: Counters, meters: Sequence[Meter], lease: str) -> None:
    try:
        await counters.release(meters, lease=lease)
    except Unavailable as error:
        logger.warning("a lease stays until it ends by itself: %s", error.message)


def headers_of(verdict: Verdict) -> dict[str, str]:
    """Of the meter with the smallest share left."""
    counted = [(m, r) for m, r in zip(verdict.meters, verdict.readings, strict=True) if m.window_s and not m.is_shadow]
    if not counted:
        return {}
    taken = int(verdict.is_admitted)
    meter, reading = min(counted, key=lambda item: 1 - item[1].used / item[0].limit)
    left = max(0, meter.limit - reading.used - taken * meter.cost)
    wait_s = verdict.retry_after_s if not verdict.is_admitted else meter.window_s
    return {
        "ratelimit-policy": f'"{meter.name}";q={meter.limit};w={ceil(meter.window_s)}',
        "ratelimit": f'"{meter.name}";r={left};t={ceil(wait_s)}',
    }


def _refusing(verdict: Verdict) -> Meter:
    return next(meter for meter in verdict.over if not meter.is_shadow)


def _refusal(verdict: Verdict) -> RateLimited:
    meter = _refusing(verdict)
    rate = f"{meter.limit} at once" if meter.window_s == 0 else f"{meter.limit} in {meter.window_s:g} s"
    return RateLimited(f"limit {meter.name!r} is used up ({rate}); come back later", max(1.0, verdict.retry_after_s))


@dataclass(slots=True)
class TokenHold:
    """Tokens set aside for one reply."""

    counters: Counters | None
    meters: Sequence[Meter]
    reserved: int
    taken_at: float

    async def settle(self, num_used: int) -> None:
        """Gives back what the reply did not need."""
        for meter in self.meters:
            assert self.counters is not None, "what was metered has counters"
            try:
                await self.counters.give_back(meter, self.reserved - num_used, taken_at=self.taken_at)
            except Unavailable as error:
                logger.warning("unused tokens stay counted: %s", error.message)


class TokenBudget:
    """What the caller of one request may still have written for him."""

    def __init__(self, counters: Counters, meters: Sequence[Meter]) -> None:
        self._counters = counters
        self._meters = meters

    async def reserve(self, num_tokens: int) -> TokenHold:
        """The most the reply can have is set aside first, so that replies written at the same time cannot exceed the
        limit together. Raises RateLimited when it is not there."""
        if not self._meters:
            return TokenHold(None, (), num_tokens, 0.0)
        meters = [replace(meter, cost=num_tokens) for meter in self._meters]
        verdict = await _take(self._counters, meters, "")
        if verdict is None:
            return TokenHold(None, (), num_tokens, 0.0)
        if not verdict.is_admitted:
            meter = _refusing(verdict)
            PROCESS.of(LIMIT_REFUSALS).inc(limit=f"{meter.name} (tokens)")
            left = max(0, meter.limit - verdict.readings[verdict.meters.index(meter)].used)
            raise RateLimited(
                f"limit {meter.name!r} has {left} of {meter.limit} tokens in {meter.window_s:g} s left, and the reply "
                f"may take {num_tokens}; lower max_tokens or come back later",
                max(1.0, verdict.retry_after_s),
            )
        return TokenHold(self._counters, meters, num_tokens, verdict.at)


async def reserve_tokens(connection: HTTPConnection, num_tokens: int) -> TokenHold:
    """For handlers: sets tokens aside under the limits of the request, if there are any."""
    budget: TokenBudget | None = connection.scope.get("state", {}).get("tokens")
    return await budget.reserve(num_tokens) if budget else TokenHold(None, (), num_tokens, 0.0)
