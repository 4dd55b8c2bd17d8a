"""Reports of several processes, silences, and who is told."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram

from chatgrpo.errors import NotFound, Unavailable
from chatgrpo.monitoring import meters
from chatgrpo.monitoring.alert_config import AlertsConfig
from chatgrpo.monitoring.alerts import Alert
from chatgrpo.monitoring.catalog import REPORTS_DROPPED
from chatgrpo.monitoring.history import History, Row
from chatgrpo.monitoring.merging import Merged, rows_of
from chatgrpo.monitoring.monitor import Monitor
from chatgrpo.monitoring.reporter import report_forever
from tests.fakes import FakeClock

CONFIG = AlertsConfig(
    rules=[
        {
            "name": "Hot",
            "when": {"type": "threshold", "metric": "chatgrpo_cpu_percent", "op": ">", "value": 90},
            "summary": "{value:g} %",
            "severity": "critical",
        }
    ]
)


def cpu(value: float) -> list[Row]:
    return [("chatgrpo_cpu_percent", {}, value)]


class Told:
    def __init__(self) -> None:
        self.changes: list[tuple[str, str]] = []

    async def __call__(self, alerts: Sequence[Alert]) -> None:
        self.changes += [(alert.rule.name, str(alert.state)) for alert in alerts]


def test_merge_rules_of_two_processes() -> None:
    merged = Merged()
    shared = "chatgrpo_training_reward", {"job_id": "a"}
    for source, cpu_percent, reward, open_now, now in (("x", 10.0, 0.1, 3.0, 0.0), ("y", 70.0, 0.2, 4.0, 1.0)):
        rows = [
            ("chatgrpo_cpu_percent", {}, cpu_percent),
            (*shared, reward),
            ("chatgrpo_http_connections", {}, open_now),
        ]
        merged.report(source, rows, now)
    assert {name: value for name, _, value in merged.rows(2.0)} == {
        "chatgrpo_cpu_percent": 70.0,
        "chatgrpo_training_reward": 0.2,
        "chatgrpo_http_connections": 7.0,
    }
    assert [name for name, _, _ in merged.rows(60.5)] == [
        "chatgrpo_cpu_percent",
        "chatgrpo_training_reward",
        "chatgrpo_http_connections",
    ]
    assert merged.rows(61.5) == []


def test_counts_never_fall_when_processes_come_and_go() -> None:
    merged = Merged()

    def count(source: str, value: float, now: float) -> float:
        merged.report(source, [("chatgrpo_http_requests_total", {}, value)], now)
        return merged.rows(now)[0][2]

    assert count("x", 100, 0) == 0  # what was counted before anybody looked
    assert count("x", 130, 5) == 30
    assert count("y", 7, 10) == 30
    assert count("y", 10, 15) == 33
    assert count("x", 4, 20) == 37  # began anew
    assert count("y", 20, 100) == 47  # x is gone, what it counted stays


def test_rows_of_a_registry_leave_out_creation_times() -> None:
    registry = CollectorRegistry()
    Counter("a", "", ["l"], registry=registry).labels("1").inc(2)
    Histogram("b", "", buckets=[1], registry=registry).observe(0.5)
    assert rows_of(registry) == [
        ("a_total", {"l": "1"}, 2.0),
        ("b_bucket", {"le": "1.0"}, 1.0),
        ("b_bucket", {"le": "+Inf"}, 1.0),
        ("b_count", {}, 1.0),
        ("b_sum", {}, 0.5),
    ]


async def test_an_alert_is_told_when_it_fires_and_when_it_ends() -> None:
    told, clock = Told(), FakeClock()
    monitor = Monitor(CONFIG, clock=clock, notify=told)
    for value in (95.0, 96.0, 50.0):
        await monitor.report("x", cpu(value))
        clock.advance(5)
    await monitor.told()
    assert told.changes == [("Hot", "firing"), ("Hot", "resolved")]
    assert await monitor.alerts() == []


async def test_a_silenced_alert_is_shown_but_not_told() -> None:
    told, clock = Told(), FakeClock()
    monitor = Monitor(CONFIG, clock=clock, notify=told)
    made = await monitor.silence(rule="Hot", labels={}, seconds=60, by="local", reason="load test")
    await monitor.report("x", cpu(99))
    shown = (await monitor.alerts())[0]
    assert (shown["name"], shown["state"], shown["message"], shown["silenced"]) == ("Hot", "firing", "99 %", True)
    assert await monitor.silences() == [made]
    clock.advance(61)
    assert await monitor.silences() == []
    await monitor.report("x", cpu(10))
    await monitor.told()
    assert told.changes == [("Hot", "resolved")]


async def test_a_receiver_that_is_slow_or_fails_holds_up_no_look_at_the_rules() -> None:
    clock, answers, told = FakeClock(), asyncio.Event(), Told()

    async def slow(alerts: Sequence[Alert]) -> None:
        await answers.wait()
        await told(alerts)
        raise ValueError

    monitor = Monitor(CONFIG, clock=clock, notify=slow)
    for value in (95.0, 50.0, 95.0):
        await monitor.report("x", cpu(value))
        clock.advance(5)
    assert (told.changes, len(await monitor.alerts())) == ([], 1)
    answers.set()
    await monitor.told()
    assert told.changes == [("Hot", "firing"), ("Hot", "resolved"), ("Hot", "firing")]


async def test_silences_can_be_ended_and_name_rules_that_exist() -> None:
    monitor = Monitor(CONFIG, clock=FakeClock())
    with pytest.raises(NotFound, match="no alert rule Cold"):
        await monitor.silence(rule="Cold", labels={}, seconds=1, by="", reason="")
    made = await monitor.silence(rule=None, labels={"job_id": "a"}, seconds=60, by="", reason="")
    await monitor.unsilence(made["id"])
    with pytest.raises(NotFound):
        await monitor.unsilence(made["id"])


def test_history_is_bounded_in_series() -> None:
    history = History(keep_s=10, max_series=3)
    history.add(0, [("a", {"i": str(i)}, 1.0) for i in range(9)] + [("a", {"i": "0"}, float("nan"))])
    assert len(history.window("a", {}, -1, 0)) == 3


async def test_a_dead_hub_costs_a_count_and_nothing_else() -> None:
    class Dead:
        calls = 0

        async def report(self, source: str, rows: Any) -> None:
            self.calls += 1
            if self.calls == 3:
                done.set()
            raise ValueError("a bug") if self.calls == 2 else Unavailable("gone")

    async def read() -> list[Row]:
        return cpu(1)

    done, dead = asyncio.Event(), Dead()
    name = REPORTS_DROPPED.sample_name
    before = meters.PROCESS.registry.get_sample_value(name) or 0.0
    task = asyncio.create_task(report_forever(dead, read, interval_s=0))  # type: ignore[arg-type]
    await done.wait()
    await asyncio.sleep(0)
    task.cancel()
    assert (meters.PROCESS.registry.get_sample_value(name) or 0.0) - before >= 3
