"""A training job as one line of a terminal: bar, reward, time left."""

from __future__ import annotations

from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text


class JobProgress:
    """A rich renderable that shows the newest job view it was given."""

    def __init__(self) -> None:
        self._view: dict[str, Any] | None = None

    def update(self, view: dict[str, Any]) -> None:
        self._view = view

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self._view is None:
            return
        progress = self._view["progress"]
        bar = ProgressBar(total=100, completed=progress["progress_percent"], width=30)
        line = Table.grid(padding=(0, 1))
        line.add_row(Text(self._view["status"], style="bold"), bar, Text(describe(self._view)))
        yield line


def describe(view: dict[str, Any]) -> str:
    """`step 12/30  reward 0.41  left 3:05`, or why the job waits."""
    if view.get("pending"):
        pending = view["pending"]
        return f"waits: {pending['reason']}; {pending['unblocked_by']}"
    progress = view["progress"]
    parts = [f"step {progress['current_step']}/{progress['total_steps'] or '?'}"]
    reward = view["metrics"].get("reward")
    if reward is not None:
        parts.append(f"reward {reward:.3f}")
    if progress["eta_s"] is not None:
        parts.append(f"left {clock_time(progress['eta_s'])}")
    return "  ".join(parts)


def clock_time(seconds: float) -> str:
    """3725 -> 1:02:05."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
