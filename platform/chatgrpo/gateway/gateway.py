"""The gateway: a route table, and the ordered list of middleware that every request passes.

gateway = Gateway(home=Path(".chatgrpo"))
gateway.add_route(RouteConfig(path="/api/v2/train", methods=["POST"], allowed_roles=["admin", "trainer"], audit="job"))
app = gateway.protect(my_asgi_app)          # or FastAPI(middleware=gateway.middleware())
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from starlette.middleware import Middleware
from starlette.types import ASGIApp

from chatgrpo.clock import Clock, SystemClock
from chatgrpo.config import PlatformConfig
from chatgrpo.errors import InvalidRequest
from chatgrpo.gateway.api_keys import Keyring
from chatgrpo.gateway.audited import Audited
from chatgrpo.gateway.authenticate import Authenticate
from chatgrpo.gateway.circuit_store import CircuitStore
from chatgrpo.gateway.circuits import Circuits
from chatgrpo.gateway.client_address import ClientAddress
from chatgrpo.gateway.config import GatewayConfig, RouteConfig
from chatgrpo.gateway.counters import Counters, MemoryCounters
from chatgrpo.gateway.counters_file import FileCounters
from chatgrpo.gateway.counters_redis import RedisCounters
from chatgrpo.gateway.deadline import Deadline
from chatgrpo.gateway.exposure import is_loopback
from chatgrpo.gateway.header_limit import HeaderLimit
from chatgrpo.gateway.hosts import AllowedHosts, hosts_of
from chatgrpo.gateway.idempotency import Idempotency
from chatgrpo.gateway.kept_answers import KeptAnswers
from chatgrpo.gateway.kept_cache import KeptCache
from chatgrpo.gateway.key_format import read_pepper
from chatgrpo.gateway.rate_limit import RateLimit
from chatgrpo.gateway.reply_cache import PREFIX as REPLIES
from chatgrpo.gateway.reply_cache import ReplyCache
from chatgrpo.gateway.response_cache import MAX_BYTES, ResponseCache
from chatgrpo.gateway.response_cache import PREFIX as ANSWERS
from chatgrpo.gateway.response_headers import ResponseHeaders
from chatgrpo.gateway.routes import RequireRow, RouteTable
from chatgrpo.gateway.shared_store import SharedStore
from chatgrpo.gateway.shedding import ShedFirst
from chatgrpo.gateway.threats import ThreatWatch, TurnAway
from chatgrpo.monitoring.catalog import CACHE_LOOKUPS, GIVEN_UP
from chatgrpo.monitoring.meters import Meter
from chatgrpo.monitoring.requests import MeasureRequests, RequestMetrics
from chatgrpo.monitoring.tracing import request_spans
from chatgrpo.resilience.ladder import Ladder
from chatgrpo.state.stores import STATE_DB, open_store

LIMITS_FILE = "limits"
# Largest body that is read into memory to compare it with an earlier one.
MAX_BODY_BYTES = 4 * 2**20


class Gateway:
    """`home` holds the embedded store and the pepper; with `redis_url` the store is shared. `host` is where the service
    listens: it decides what may be open. Without `enable_security` only routing, deadlines and metrics remain."""

    def __init__(
        self,
        redis_url: str | None = None,
        enable_metrics: bool = True,
        enable_security: bool = True,
        *,
        home: Path = Path(".chatgrpo"),
        host: str = "127.0.0.1",
        config: GatewayConfig | None = None,
        routes: Iterable[RouteConfig] = (),
        clock: Clock | None = None,
        max_body_bytes: int = MAX_BODY_BYTES,
    ) -> None:
        self.config = config or GatewayConfig()
        self.metrics = RequestMetrics() if enable_metrics else None
        self.table = RouteTable([*routes, *self.config.routes])
        self._enable_security = enable_security
        self._host = host
        self._max_body_bytes = max_body_bytes
        clock = clock or SystemClock()
        self.store = SharedStore(lambda: open_store(redis_url or home / STATE_DB), clock=clock)
        registry = self.metrics.registry if self.metrics else None
        self.threats = ThreatWatch(self.config.threats, clock=clock, registry=registry)
        lookups = Meter(CACHE_LOOKUPS, registry, None)
        self._looked = lambda result: lookups.inc(tier="response", result=result)
        self.cache = KeptCache.of(redis_url, prefix=ANSWERS, clock=clock, max_bytes=MAX_BYTES)
        replies = KeptCache.of(redis_url, prefix=REPLIES, clock=clock, max_bytes=self.config.reply_cache.max_bytes)
        self.replies = ReplyCache(
            self.config.reply_cache, replies, looked=lambda result: lookups.inc(tier="reply", result=result)
        )
        resilience = self.config.resilience
        given_up = Meter(GIVEN_UP, registry, None)
        self.ladder = Ladder(resilience.ladder, gave_up=lambda kind: given_up.inc(kind=kind))
        self.circuits = Circuits(CircuitStore(self.store), config=resilience.breaker, clock=clock, registry=registry)
        self.kept_answers = KeptAnswers(self.store, clock=clock, ttl_s=self.config.idempotency_ttl_s)
        self.counters = counters_of(self.config, redis_url, home, clock)
        self.keyring = Keyring(self.store, pepper=pepper_of(self.config, home), clock=clock)

    @classmethod
    def of(cls, platform: PlatformConfig, *, routes: Iterable[RouteConfig], clock: Clock) -> Gateway:
        """As the platform's settings say."""
        return cls(
            platform.redis_url,
            home=platform.home,
            host=platform.host,
            config=platform.gateway,
            routes=routes,
            clock=clock,
            max_body_bytes=platform.max_body_bytes,
        )

    def add_route(self, row: RouteConfig) -> None:
        """Replaces the row of the same path and method, also while requests are served."""
        self.table.add(row)

    def middleware(self) -> list[Middleware]:
        """Pure ASGI, outermost first."""
        found = [Middleware(MeasureRequests, metrics=self.metrics, spans=request_spans())] if self.metrics else []
        found += [Middleware(ResponseHeaders), Middleware(ClientAddress, trusted=self.config.trusted_proxies)]
        if self._enable_security:
            allowed = hosts_of(self.config.allowed_hosts, self._host)
            named = frozenset(name.lower() for name in self.config.allowed_hosts)
            found += [Middleware(TurnAway, watch=self.threats), Middleware(HeaderLimit)]
            found += [Middleware(AllowedHosts, allowed=allowed, named=named)]
        found += [Middleware(RequireRow, table=self.table)]
        if self._enable_security:
            always = self.config.require_keys or not is_loopback(self._host)
            found += [
                Middleware(Audited, open_trail=self.store.trail),
                Middleware(Authenticate, keyring=self.keyring, always=always),
                Middleware(RateLimit, rules=self.config.limits, counters=self.counters),
                Middleware(ShedFirst, ladder=self.ladder),
                Middleware(ResponseCache, kept=self.cache, looked=self._looked),
            ]
            once = Middleware(Idempotency, answers=self.kept_answers, max_body_bytes=self._max_body_bytes)
            return [*found, Middleware(Deadline), once]
        return [*found, Middleware(Deadline)]

    async def close(self) -> None:
        await self.counters.close()
        await self.cache.close()
        await self.replies.kept.close()
        await self.store.close()

    def protect(self, app: ASGIApp) -> ASGIApp:
        """Any ASGI application behind this gateway."""
        for layer, args, kwargs in reversed(self.middleware()):
            app = layer(app, *args, **kwargs)
        return app


def counters_of(config: GatewayConfig, redis_url: str | None, home: Path, clock: Clock) -> Counters:
    """Raises InvalidRequest when Redis is asked for and there is no address."""
    kind = config.counters
    if kind == "memory":
        return MemoryCounters(clock)
    if kind == "redis" and redis_url is None:
        raise InvalidRequest("needs a redis_url", "gateway.counters")
    if kind != "file" and redis_url is not None:
        return RedisCounters(redis_url)
    return FileCounters(home / LIMITS_FILE, clock)


def pepper_of(config: GatewayConfig, home: Path) -> bytes:
    if config.key_pepper is not None:
        return config.key_pepper.get_secret_value().encode()
    return read_pepper(home)
