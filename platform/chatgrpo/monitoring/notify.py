"""Carries alerts to people: the log, signed webhooks, Alertmanager, mail. One handler's trouble is not another's."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import os
import smtplib
from collections.abc import Sequence
from datetime import UTC, datetime
from email.message import EmailMessage
from typing import Any

import httpx
import stamina

from chatgrpo.clock import Clock
from chatgrpo.errors import InvalidRequest, PlatformError
from chatgrpo.monitoring.alert_config import (
    AlertmanagerHandler,
    EmailHandler,
    Handler,
    LogHandler,
    PluginHandler,
    WebhookHandler,
)
from chatgrpo.monitoring.alert_plugins import load_handler
from chatgrpo.monitoring.alerts import Alert, AlertState
from chatgrpo.monitoring.outbound import pinned

logger = logging.getLogger(__name__)

_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "critical": logging.ERROR}
SIGNATURE = "X-Chatgrpo-Signature"


class Notifier:
    """Sends every alert to every handler. `http` replaces the transport, for tests."""

    def __init__(
        self, handlers: Sequence[Handler], *, clock: Clock, http: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._handlers, self._clock, self._http = handlers, clock, http
        # Found now: a handler that is not installed must be said when the hub starts, not when something burns.
        self._plugins = {h.name: load_handler(h) for h in handlers if isinstance(h, PluginHandler)}

    async def __call__(self, alerts: Sequence[Alert]) -> None:
        await asyncio.gather(*(self._isolated(handler, alerts) for handler in self._handlers))

    async def _isolated(self, handler: Handler, alerts: Sequence[Alert]) -> None:
        try:
            await self._send(handler, alerts)
        except (httpx.HTTPError, OSError, smtplib.SMTPException, PlatformError) as error:
            logger.error("alert handler %s failed: %s", handler.type, error or type(error).__name__)

    async def _send(self, handler: Handler, alerts: Sequence[Alert]) -> None:
        match handler:
            case LogHandler():
                for alert in alerts:
                    level = logging.INFO if alert.state is AlertState.RESOLVED else _LEVELS[alert.rule.severity]
                    logger.log(level, "%s %s: %s", alert.state, alert.rule.name, alert.summary)
            case WebhookHandler():
                body = json.dumps({"alerts": [alert.to_json() for alert in alerts]}).encode()
                headers = sign(body, _secret(handler.secret_env, "secret_env"), self._clock.now())
                await self._post(handler.url, body, headers, handler, allow_private=handler.allow_private)
            case AlertmanagerHandler():
                body = json.dumps([for_alertmanager(alert) for alert in alerts]).encode()
                url = f"{handler.url.rstrip('/')}/api/v2/alerts"
                await self._post(url, body, {}, handler, allow_private=True)
            case PluginHandler():
                await self._hand_over(handler, alerts)
            case EmailHandler():
                await asyncio.to_thread(_mail, handler, alerts)

    async def _hand_over(self, handler: PluginHandler, alerts: Sequence[Alert]) -> None:
        try:
            async with asyncio.timeout(handler.timeout_s):
                await self._plugins[handler.name]([alert.to_json() for alert in alerts])
        except Exception as error:
            # Foreign code may raise anything; the other handlers must be told all the same.
            logger.exception("alert handler %s failed: %s", handler.name, type(error).__name__)

    async def _post(
        self,
        url: str,
        body: bytes,
        headers: dict[str, str],
        handler: WebhookHandler | AlertmanagerHandler,
        *,
        allow_private: bool,
    ) -> None:
        """Raises httpx.HTTPError after the last attempt; redirects are not followed."""
        async for attempt in stamina.retry_context(on=httpx.HTTPError, attempts=handler.attempts, timeout=60.0):
            with attempt:
                target = await pinned(url, allow_private=allow_private)
                async with httpx.AsyncClient(transport=self._http, timeout=handler.timeout_s, trust_env=False) as http:
                    sent = await http.post(
                        target.url,
                        content=body,
                        headers={"Content-Type": "application/json", "Host": target.host, **headers},
                        extensions={"sni_hostname": target.name},
                    )
                sent.raise_for_status()


def _secret(name: str | None, field: str) -> str | None:
    """From the environment; None when none is asked for. One that is asked for and missing is refused: what should be
    signed must not go out unsigned."""
    if name is None:
        return None
    found = os.environ.get(name)
    if not found:
        raise InvalidRequest(f"the environment variable {name} is not set", field)
    return found


def sign(body: bytes, secret: str | None, now: float) -> dict[str, str]:
    """The signature binds the time, so that an old message cannot be sent again. No secret, no header."""
    if not secret:
        return {}
    mac = hmac.new(secret.encode(), f"{int(now)}.".encode() + body, hashlib.sha256)
    return {SIGNATURE: f"t={int(now)},v1={mac.hexdigest()}"}


def for_alertmanager(alert: Alert) -> dict[str, Any]:
    """The shape of POST /api/v2/alerts of Alertmanager 0.2x."""
    shown: dict[str, Any] = {
        "labels": {**dict(alert.labels), "alertname": alert.rule.name, "severity": alert.rule.severity},
        "annotations": {"summary": alert.summary, "description": alert.rule.advice},
        "startsAt": _iso(alert.fired_at or alert.since),
    }
    return shown | ({"endsAt": _iso(alert.resolved_at)} if alert.resolved_at is not None else {})


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()


def _mail(handler: EmailHandler, alerts: Sequence[Alert]) -> None:
    message = EmailMessage()
    names = ", ".join(sorted({f"{alert.rule.name} {alert.state}" for alert in alerts}))
    message["Subject"], message["From"], message["To"] = f"chatgrpo: {names}", handler.sender, ", ".join(handler.to)
    message.set_content("\n\n".join(f"{a.rule.severity} {a.state}: {a.summary}\n{a.rule.advice}" for a in alerts))
    with smtplib.SMTP(handler.host, handler.port, timeout=handler.timeout_s) as server:
        if handler.starttls:
            server.starttls()
        if handler.username is not None:
            server.login(handler.username, _secret(handler.password_env, "password_env") or "")
        server.send_message(message)
