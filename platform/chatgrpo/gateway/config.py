"""Settings of the gateway, and a route as data. Imports nothing of the platform's settings, which include these."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator

from chatgrpo.gateway.balancing import Strategy
from chatgrpo.gateway.roles import Permission, Role
from chatgrpo.resilience.config import ResilienceConfig

Method = Annotated[
    Literal["GET", "POST", "PUT", "PATCH", "DELETE", "WEBSOCKET"],
    BeforeValidator(lambda value: value.upper() if isinstance(value, str) else value),
]


class RouteConfig(BaseModel):
    """One row of the route table: what a request to this path must satisfy before its handler sees it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(pattern="^/", description="Template, as in `/api/v2/jobs/{job_id}`.")
    methods: tuple[Method, ...] = Field(("GET",), min_length=1, description="WEBSOCKET for a socket.")
    requires_auth: bool = Field(True, description="Whether a key is asked for, once keys are in use.")
    permission: Permission | None = Field(None, description="What the key must permit; null: any key will do.")
    allowed_roles: tuple[Role, ...] | None = Field(None, description="The only roles let through; null: every role.")
    timeout: float = Field(
        60.0, gt=0, description="Seconds until the answer must have begun; a stream may last longer."
    )
    cache_ttl: float = Field(
        0.0, ge=0, le=86400, description="Seconds for which the answer to a GET is told again to its tenant; 0: never."
    )
    cache_stale: float = Field(
        0.0, ge=0, le=86400, description="Seconds after cache_ttl in which it still is, while it is made anew."
    )
    rate_limit: int | None = Field(None, ge=1, description="Requests a minute of one caller; null: only `limits`.")
    max_body_bytes: int | None = Field(None, ge=1, description="Largest body; null: the platform's max_body_bytes.")
    successor: str | None = Field(
        None, pattern="^/", description="Path that follows this one, which is deprecated, and answers for it."
    )
    is_forwarded: bool = Field(
        True, description="Whether the successor answers; false: this path has a handler and a shape of its own."
    )
    audit: str | None = Field(None, description="Name of the act in the audit trail; null: not recorded.")
    is_audit_strict: bool = Field(
        True, description="Whether its entry is on disk before the answer; false: within hundredths of a second."
    )

    keeps_answers: bool = Field(
        True, description="Whether the answer to a POST with an Idempotency-Key is kept; false where it holds a secret."
    )
    is_shed_first: bool = Field(
        False, description="Refused (503) first when replies pile up: training-side requests make room for chat."
    )

    @model_validator(mode="after")
    def _caches_only_get(self) -> Self:
        if self.cache_ttl and set(self.methods) != {"GET"}:
            raise ValueError(f"cache_ttl: only answers to GET can be told again, and methods are {list(self.methods)}")
        return self


class LimitRule(BaseModel):
    """How much of something a caller may have. One counter for each combination of what `per` names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern="^[a-z][a-z0-9_-]*$", description="In headers and refusals.")
    per: tuple[Literal["address", "caller", "key", "tenant", "route"], ...] = Field(
        ("caller",), description="`caller` is the key, or the address of who has none. Empty: one counter for all."
    )
    requests: int | None = Field(None, ge=1, description="Most requests in any `window_s`.")
    burst: int | None = Field(None, ge=1, description="Most requests in any second.")
    tokens: int | None = Field(None, ge=1, description="Most generated tokens in any `window_s`; 86400: a quota.")
    parallel: int | None = Field(None, ge=1, description="Most requests being answered at once.")
    window_s: float = Field(60.0, ge=1, le=2_678_400, description="Seconds.")
    routes: tuple[str, ...] = Field((), description="Only for these paths of the route table; empty: all.")
    is_shadow: bool = Field(False, description="Counts and says so in the log, refuses nobody.")
    if_store_is_down: Literal["open", "closed"] = Field("open", description="Whether requests pass uncounted then.")


class ThreatConfig(BaseModel):
    """When an address is turned away for what it did. Points fade by half every `half_life_s`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    blocked: tuple[IPv4Network | IPv6Network, ...] = Field((), description="Networks that are always turned away.")
    never_blocked: tuple[IPv4Network | IPv6Network, ...] = Field(
        (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128")),
        description="Networks that are never turned away by points.",
    )
    threshold: float = Field(100.0, gt=0, description="Points at which an address is blocked.")
    half_life_s: float = Field(60.0, gt=0, description="Seconds in which points and repeated offences fade by half.")
    block_s: float = Field(60.0, gt=0, description="First block, in seconds; each further one is twice as long.")
    max_block_s: float = Field(3600.0, gt=0, description="Longest block.")
    wrong_key: float = Field(10.0, ge=0, description="Points for a key that is not known: credential stuffing.")
    malformed_key: float = Field(20.0, ge=0, description="Points for a key that cannot be one: key scanning.")
    unknown_path: float = Field(5.0, ge=0, description="Points for a path that does not exist: probing.")
    bad_body: float = Field(2.0, ge=0, description="Points for a body too large, malformed or of a wrong type.")


class ReplyCacheConfig(BaseModel):
    """Replies at temperature 0, told again to the same tenant by the same version of the same model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ttl_s: float = Field(0.0, ge=0, description="Seconds for which a reply is told again; 0: never.")
    stale_s: float = Field(
        300.0, ge=0, description="Seconds after that in which it still is, while it is being written anew."
    )
    max_bytes: int = Field(64 * 2**20, ge=1, description="Memory for them in each replica of the API.")
    warm_up: int = Field(
        0, ge=0, le=1000, description="Newest questions of each model that are asked anew once it is published anew."
    )


class GatewayConfig(BaseModel):
    """What happens to a request before a handler sees it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    require_keys: bool = Field(
        False, description="Ask for a key even on loopback before the first one exists; elsewhere always asked."
    )
    key_pepper: SecretStr | None = Field(
        None, description="Secret that keys are hashed with (16 characters or more); null: a file under `home`."
    )
    allowed_hosts: tuple[str, ...] = Field(
        (), description="Values of the Host header let in; empty: names of loopback there, any elsewhere. `*`: any."
    )
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = Field(
        (), description="Networks of proxies whose X-Forwarded-For is believed; empty: nobody's is."
    )
    limits: tuple[LimitRule, ...] = Field(
        (LimitRule(name="caller", requests=6000, burst=500),), description="Each applies; the strictest decides."
    )
    counters: Literal["auto", "memory", "file", "redis"] = Field(
        "auto", description="Where limits count. auto: redis with a `redis_url`, else a file for all replicas on it."
    )
    balancing: Strategy = Field(
        Strategy.LEAST_CONNECTIONS, description="Which replica of a model gets the next request."
    )
    threats: ThreatConfig = Field(default_factory=ThreatConfig, description="Automatic and manual blocking.")
    resilience: ResilienceConfig = Field(
        default_factory=ResilienceConfig,
        description="Breakers, retries, deadlines of replies, what is shed under load.",
    )
    reply_cache: ReplyCacheConfig = Field(
        default_factory=ReplyCacheConfig, description="Replies that are told again; also in Redis with a `redis_url`."
    )
    idempotency_ttl_s: float = Field(
        86400.0, gt=0, description="Seconds for which the answer to a POST with an Idempotency-Key is told again."
    )
    routes: tuple[RouteConfig, ...] = Field((), description="Rows that replace those of the same path and method.")

    def model_post_init(self, _: Any) -> None:
        if self.key_pepper is not None and len(self.key_pepper.get_secret_value()) < 16:
            raise ValueError("key_pepper: needs 16 characters or more")
