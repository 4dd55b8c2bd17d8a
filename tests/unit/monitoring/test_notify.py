"""Handlers: what goes over the wire, where it may go, and that one's trouble is its own."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import smtplib
from email.message import EmailMessage
from typing import Any

import httpx
import pytest
import stamina

from chatgrpo.errors import InvalidRequest, Unavailable
from chatgrpo.monitoring.alert_config import AlertmanagerHandler, EmailHandler, LogHandler, Rule, WebhookHandler
from chatgrpo.monitoring.alerts import Alert
from chatgrpo.monitoring.notify import Notifier
from chatgrpo.monitoring.outbound import pinned
from tests.fakes import FakeClock

RULE = Rule.model_validate(
    {
        "name": "Hot",
        "severity": "critical",
        "when": {"type": "threshold", "metric": "cpu", "value": 90},
        "summary": "{host} at {value:g} %",
        "advice": "Cool it.",
    }
)
ALERT = Alert(rule=RULE, labels=frozenset({("host", "n1")}), since=0.0, value=99.0, fired_at=60.0)


@pytest.fixture(autouse=True)
def no_waiting() -> Any:
    stamina.set_testing(True, attempts=3, cap=True)
    yield
    stamina.set_testing(False)


class Wire:
    """Answers with these statuses, then 200."""

    def __init__(self, *statuses: int) -> None:
        self.statuses, self.requests = list(statuses), []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return httpx.Response(self.statuses.pop(0) if self.statuses else 200)


async def send(wire: Wire, *handlers: Any) -> None:
    await Notifier(handlers, clock=FakeClock(1000.0), http=httpx.MockTransport(wire))([ALERT])


async def test_a_webhook_is_signed_over_time_and_body(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_SECRET", "s3cret")
    wire = Wire()
    await send(wire, WebhookHandler(url="http://127.0.0.1:9/hook?a=1", secret_env="HOOK_SECRET", allow_private=True))
    request = wire.requests[0]
    mac = hmac.new(b"s3cret", b"1000." + request.content, hashlib.sha256).hexdigest()
    assert request.headers["x-chatgrpo-signature"] == f"t=1000,v1={mac}"
    assert (str(request.url), request.headers["host"]) == ("http://127.0.0.1:9/hook?a=1", "127.0.0.1:9")
    told = json.loads(request.content)["alerts"][0]
    assert (told["name"], told["message"], told["labels"]) == ("Hot", "n1 at 99 %", {"host": "n1"})


async def test_what_should_be_signed_does_not_go_out_unsigned(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("HOOK_SECRET", raising=False)
    wire = Wire()
    await send(wire, WebhookHandler(url="http://127.0.0.1:9/hook", secret_env="HOOK_SECRET", allow_private=True))
    assert wire.requests == []
    assert "HOOK_SECRET is not set" in caplog.text


async def test_a_failing_receiver_is_asked_again_and_given_up(caplog: pytest.LogCaptureFixture) -> None:
    hook = WebhookHandler(url="http://127.0.0.1:9/", allow_private=True)
    wire = Wire(503, 500)
    await send(wire, hook)
    assert len(wire.requests) == 3
    assert not caplog.records
    await send(Wire(500, 500, 500), hook)
    assert "alert handler webhook failed" in caplog.text


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://localhost/",
        "http://10.0.0.1/",
        "http://192.168.1.1/",
        "http://169.254.169.254/latest/meta-data",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[2002:7f00:1::]/",
        "http://0.0.0.0/",
        "http://2130706433/",
        "http://0x7f.1/",
    ],
)
async def test_a_webhook_does_not_reach_inside(url: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InvalidRequest, match="not a public address"):
        await pinned(url, allow_private=False)
    wire = Wire()
    await send(wire, WebhookHandler(url=url))
    assert wire.requests == []
    assert "not a public address" in caplog.text


async def test_the_checked_address_is_the_one_connected_to() -> None:
    target = await pinned("https://93.184.216.34/x", allow_private=False)
    assert (target.url, target.host, target.name) == ("https://93.184.216.34:443/x", "93.184.216.34", "93.184.216.34")
    with pytest.raises(Unavailable, match="cannot be resolved"):
        await pinned("http://nowhere.invalid/", allow_private=False)


async def test_alertmanager_gets_its_own_shape() -> None:
    wire = Wire()
    await send(wire, AlertmanagerHandler(url="http://127.0.0.1:9093/"))
    assert wire.requests[0].url.path == "/api/v2/alerts"
    assert json.loads(wire.requests[0].content) == [
        {
            "labels": {"host": "n1", "alertname": "Hot", "severity": "critical"},
            "annotations": {"summary": "n1 at 99 %", "description": "Cool it."},
            "startsAt": "1970-01-01T00:01:00+00:00",
        }
    ]


async def test_mail(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[str, EmailMessage]] = []

    class Server:
        def __init__(self, host: str, port: int, timeout: float) -> None:
            self.host = f"{host}:{port}"

        def __enter__(self) -> Server:
            return self

        def __exit__(self, *_: object) -> None: ...

        def send_message(self, message: EmailMessage) -> None:
            sent.append((self.host, message))

    monkeypatch.setattr(smtplib, "SMTP", Server)
    await send(Wire(), EmailHandler(host="smtp", port=25, sender="a@b.c", to=["d@e.f"], starttls=False))
    host, message = sent[0]
    assert (host, message["Subject"], message["To"]) == ("smtp:25", "chatgrpo: Hot firing", "d@e.f")
    assert "n1 at 99 %" in message.get_content()


async def test_a_broken_handler_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await send(Wire(), WebhookHandler(url="http://nowhere.invalid/"), LogHandler())
    assert "firing Hot: n1 at 99 %" in caplog.text
    assert "alert handler webhook failed: nowhere.invalid cannot be resolved" in caplog.text
