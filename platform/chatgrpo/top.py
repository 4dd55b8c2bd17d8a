"""`chatgrpo top`: alerts, machine, requests and jobs on one screen, anew every few seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from chatgrpo.client import Client
from chatgrpo.jobs.job import JobState
from chatgrpo.progress import describe

_ENDED = {state.value for state in JobState if state.is_terminal}


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the platform answered at one look."""

    metrics: dict[str, Any]
    alerts: list[dict[str, Any]]
    jobs: list[dict[str, Any]]


def look(client: Client) -> Seen:
    """Raises Unavailable when no platform answers."""
    return Seen(metrics=client.metrics(), alerts=client.alerts(), jobs=client.jobs(limit=30))


def screen(seen: Seen) -> RenderableType:
    """One frame. All text of people is shown as text, never as markup."""
    return Group(_platform(seen.metrics), *_alerts(seen), Text(), _jobs(seen.jobs))


def _platform(metrics: dict[str, Any]) -> Text:
    system, api, chat = metrics["system_metrics"], metrics["api_metrics"], metrics["chat_metrics"]
    parts = [
        f"cpu {system['cpu_percent']:.0f}% of {system['cpu_count']}",
        f"memory {system['memory_percent']:.0f}%",
        f"disk {system['disk_percent']:.0f}%",
        *(f"gpu{gpu['index']} {gpu['utilization_percent']:.0f}%" for gpu in system["gpus"]),
        f"requests {api['total_requests']} ({100 * api['error_rate']:.1f}% errors)",
        f"chats {chat.get('active_requests', '?')}",
    ]
    return Text("   ".join(parts), style="bold")


def _alerts(seen: Seen) -> list[Text]:
    down = [alert for alert in seen.metrics["alerts"] if alert.get("component")]
    firing = [a for a in seen.alerts if a["state"] == "firing" and "component" not in a["labels"]]
    style = {"critical": "bold red", "warning": "yellow"}
    return [
        Text(f"{alert['severity']}: {alert['name']}: {alert['message']}", style=style.get(alert["severity"], ""))
        for alert in [*down, *firing]
    ]


def _jobs(jobs: list[dict[str, Any]]) -> Table:
    """Those that go on first, then the newest that have ended."""
    # One line a job, however narrow the terminal; an id is of use only as a whole.
    widths = {"job": 26, "name": None, "state": 9, "held-out": 8, "KL": 6, "length": 6, "": None}
    columns = (Column(name, no_wrap=True, min_width=width) for name, width in widths.items())
    table = Table(*columns, box=None, pad_edge=False, header_style="dim")
    for job in sorted(jobs, key=lambda job: job["status"] in _ENDED):
        figures = job["metrics"]
        numbers = (_number(figures.get(name)) for name in ("eval_reward", "kl", "completion_length"))
        said = job["error"] or describe(job)
        table.add_row(*map(Text, (job["job_id"], job["experiment_name"], job["status"], *numbers, said)))
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
