"""`chatgrpo tune`, `sweep` and `sweeps`: search for the values that learn best."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer
import yaml
from rich.console import Console
from rich.live import Live
from rich.table import Column, Table

from chatgrpo.client import Client
from chatgrpo.errors import InvalidRequest, PlatformError
from chatgrpo.jobs.job import JobState
from chatgrpo.jobs.sweeps.files import load_sweep

console = Console()

OutOption = Annotated[
    Path | None, typer.Option("--out", "-o", help="File for the best configuration, as `chatgrpo train` takes it.")
]


def tune(
    ctx: typer.Context,
    config: Annotated[Path, typer.Argument(help="YAML file, for example configs/tune/tiny.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a field; may be repeated.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show its trials until it has ended.")] = False,
    out: OutOption = None,
) -> None:
    """Queue a sweep: many runs of one configuration, to find the values that learn best."""
    if out is not None and not follow:
        raise InvalidRequest("the best configuration is known at the end; add --follow", "--out")
    submitted = _client(ctx).tune(load_sweep(config, overrides or []))
    sweep_id = submitted["sweep_id"]
    console.print(f"sweep [bold]{sweep_id}[/] is {submitted['status']}", highlight=False)
    if follow:
        _follow(_client(ctx), sweep_id, out)
    else:
        console.print(f"follow it with: chatgrpo sweep {sweep_id} --follow", style="dim", highlight=False)


def sweep(
    ctx: typer.Context,
    sweep_id: Annotated[str, typer.Argument(help="Id of a sweep, as `chatgrpo sweeps` shows it.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until it has ended.")] = False,
    out: OutOption = None,
) -> None:
    """Show a sweep with its trials, the best first."""
    if follow:
        _follow(_client(ctx), sweep_id, out)
        return
    view = _client(ctx).sweep(sweep_id)
    console.print(f"{view['experiment_name']} is {view['status']}", highlight=False)
    console.print(trials_table(view))
    _write_best(view, out)


def sweeps(
    ctx: typer.Context,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 20,
) -> None:
    """List sweeps, newest first."""
    table = Table(
        Column("sweep", no_wrap=True, min_width=26), "experiment", "status", "ended", box=None, pad_edge=False
    )
    for view in _client(ctx).sweeps(limit=limit):
        ended = f"{view['progress']['current_step']}/{view['progress']['total_steps'] or '?'}"
        table.add_row(view["job_id"], view["experiment_name"], view["status"], ended)
    console.print(table)


def trials_table(view: dict[str, Any]) -> Table:
    """A row for each trial that has started, the best first."""
    table = Table("trial", "state", "step", view["metric"], *view["space"], box=None, pad_edge=False)
    for trial in view["trials"]:
        params = [_short(trial["params"].get(name)) for name in view["space"]]
        table.add_row(trial["trial_id"], trial["state"], str(trial["step"]), _short(trial["best"]), *params)
    return table


def _short(value: object) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _follow(client: Client, sweep_id: str, out: Path | None) -> None:
    """Ctrl-C stops the showing, not the sweep."""
    with Live(trials_table(client.sweep(sweep_id)), console=console, auto_refresh=False) as shown:
        job = client.wait(
            sweep_id, on_progress=lambda _: shown.update(trials_table(client.sweep(sweep_id)), refresh=True)
        )
        view = client.sweep(sweep_id)
        shown.update(trials_table(view), refresh=True)
    if job["status"] != JobState.SUCCEEDED:
        raise PlatformError(f"sweep {sweep_id} {job['status']}: {job.get('error') or 'by request'}")
    _write_best(view, out)


def _write_best(view: dict[str, Any], out: Path | None) -> None:
    best = view["best"]
    if best is None:
        return
    console.print(f"best: {best['params']} with {view['metric']} {best['best']:g}", highlight=False, markup=False)
    if out is not None:
        out.write_text(yaml.safe_dump(best["config"], sort_keys=False), encoding="utf-8")
        console.print(f"wrote {out}; train with it: chatgrpo train {out}", highlight=False)


def _client(ctx: typer.Context) -> Client:
    return cast(Client, ctx.obj)
