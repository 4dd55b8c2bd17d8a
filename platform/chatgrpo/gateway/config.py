"""Settings of the gateway, and a route as data. Imports nothing of the platform's settings, which include these."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from chatgrpo.gateway.roles import Permission, Role

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
    max_body_bytes: int | None = Field(None, ge=1, description="Largest body; null: the platform's max_body_bytes.")
    audit: str | None = Field(None, description="Name of the act in the audit trail; null: not recorded.")


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
    routes: tuple[RouteConfig, ...] = Field((), description="Rows that replace those of the same path and method.")

    def model_post_init(self, _: Any) -> None:
        if self.key_pepper is not None and len(self.key_pepper.get_secret_value()) < 16:
            raise ValueError("key_pepper: needs 16 characters or more")
