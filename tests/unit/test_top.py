"""`chatgrpo top`: one screen."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from chatgrpo import cli
from chatgrpo.top import Seen, screen
from tests.fake_services import FakeJobs

METRICS: dict[str, Any] = {
    "system_metrics": {"cpu_percent": 41.2, "cpu_count": 2, "memory_percent": 30.0, "disk_percent": 26.0, "gpus": []},
    "api_metrics": {"total_requests": 200, "error_rate": 0.015},
    "chat_metrics": {},
    "alerts": [
        {"name": "component_down", "severity": "critical", "component": "chat", "message": "no replica answers"}
    ],
}
ALERTS = [
    {"name": "KLRunaway", "severity": "warning", "state": "firing", "labels": {"job_id": "a"}, "message": "job a: far"},
    {"name": "DiskFull", "severity": "critical", "state": "pending", "labels": {}, "message": "not yet"},
    {
        "name": "ComponentDown",
        "severity": "critical",
        "state": "firing",
        "labels": {"component": "chat"},
        "message": "x",
    },
]


def seen() -> Seen:
    jobs = FakeJobs()
    jobs.put("old", status="failed")
    jobs.put("new", status="running")
    jobs.views["new"]["experiment_name"] = "[bold]sums[/bold]"
    jobs.views["new"]["metrics"] |= {"eval_reward": 0.5, "kl": 0.0123}
    return Seen(metrics=METRICS, alerts=ALERTS, jobs=list(jobs.views.values()))


def test_alerts_come_first_and_ended_jobs_last() -> None:
    console = Console(width=140)
    with console.capture() as shown:
        console.print(screen(seen()))
    lines = [" ".join(line.split()) for line in shown.get().splitlines()]
    assert lines == [
        "cpu 41% of 2 memory 30% disk 26% requests 200 (1.5% errors) chats ?",
        "critical: component_down: no replica answers",
        "warning: KLRunaway: job a: far",
        "",
        "job name state held-out KL length",
        "new [bold]sums[/bold] running 0.5 0.0123 - step 12/30 reward 0.412 left 3:05",
        "old sums failed - - - out of tasks",
    ]


def test_once_is_for_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    class Platform:
        def __init__(self, url: str) -> None: ...

        def close(self) -> None: ...

        def metrics(self) -> Any:
            return METRICS

        def alerts(self) -> Any:
            return ALERTS

        def jobs(self, *, limit: int) -> Any:
            return seen().jobs[:limit]

    monkeypatch.setattr(cli, "Client", Platform)
    result = CliRunner().invoke(cli.app, ["top", "--once"])
    assert result.exit_code == 0
    assert "KLRunaway" in result.output
