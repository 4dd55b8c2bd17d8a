"""Handlers of other packages."""

from __future__ import annotations

import asyncio
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from chatgrpo.errors import InvalidRequest
from chatgrpo.monitoring import alert_plugins
from chatgrpo.monitoring.alert_config import LogHandler, PluginHandler, Rule, Threshold
from chatgrpo.monitoring.alerts import Alert
from chatgrpo.monitoring.notify import Notifier
from tests.fakes import FakeClock

TOLD: list[Any] = []


def make_pager(team: str) -> Any:
    async def page(alerts: list[dict[str, Any]]) -> None:
        TOLD.append((team, [(alert["name"], alert["state"]) for alert in alerts]))

    return page


def make_broken() -> Any:
    async def fail(alerts: list[dict[str, Any]]) -> None:
        raise RuntimeError("the pager is on fire")

    return fail


def make_slow() -> Any:
    async def never(alerts: list[dict[str, Any]]) -> None:
        await asyncio.Event().wait()

    return never


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"pager": make_pager, "broken": make_broken, "slow": make_slow, "mapping": dict}

    class Point(EntryPoint):
        def load(self) -> Any:
            return names[self.name]

    points = [Point(name=name, value="x:y", group=alert_plugins.GROUP) for name in names]
    monkeypatch.setattr(alert_plugins, "entry_points", lambda group: points)
    TOLD.clear()


FIRING = Alert(
    rule=Rule(name="Hot", when=Threshold(metric="m", where={}, value=1), summary="hot"),
    labels=frozenset(),
    since=0,
    value=2,
    fired_at=1,
)


async def test_a_handler_of_another_package_is_told() -> None:
    await Notifier([PluginHandler(name="pager", options={"team": "ml"})], clock=FakeClock())([FIRING])
    assert TOLD == [("ml", [("Hot", "firing")])]


async def test_one_that_fails_or_hangs_does_not_keep_others_from_being_told(caplog: pytest.LogCaptureFixture) -> None:
    handlers = [
        PluginHandler(name="broken"),
        PluginHandler(name="slow", timeout_s=0.01),
        PluginHandler(name="pager", options={"team": "ops"}),
        LogHandler(),
    ]
    await Notifier(handlers, clock=FakeClock())([FIRING])
    assert TOLD == [("ops", [("Hot", "firing")])]
    assert "alert handler broken failed: RuntimeError" in caplog.text
    assert "alert handler slow failed: TimeoutError" in caplog.text


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        (PluginHandler(name="nobody"), "there are: broken, mapping, pager, slow"),
        (PluginHandler(name="pager"), "cannot be made: TypeError"),
        (PluginHandler(name="mapping"), "is no function but a dict"),
    ],
)
def test_what_cannot_be_used_is_said_at_once(handler: PluginHandler, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        Notifier([handler], clock=FakeClock())
