"""`chatgrpo`: the platform from a terminal. Everything but `serve` and `export` talks to a running platform."""

from __future__ import annotations

import importlib
import shutil
import time
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text
from typer.core import TyperGroup

from chatgrpo import cli_audit, cli_keys, cli_plan, cli_sweeps
from chatgrpo.client import DEFAULT_URL, Client
from chatgrpo.config import load_platform_config, load_yaml
from chatgrpo.errors import InvalidRequest, NotFound, PlatformError
from chatgrpo.gateway.ingress import prepare_ingress
from chatgrpo.jobs.job import JobState
from chatgrpo.jobs.seed_request import SeedTrainRequest, is_seed_request
from chatgrpo.overrides import apply_overrides
from chatgrpo.progress import JobProgress
from chatgrpo.reference import fields_of
from chatgrpo.top import look, screen
from chatgrpo.training.config import TrainConfig


class Commands(TyperGroup):
    """An error of the platform is one line on stderr. Exit status: 2 for a wrong request, 1 for everything else."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except PlatformError as error:
            typer.secho(f"error: {error}", fg="red", err=True)
            raise typer.Exit(2 if isinstance(error, InvalidRequest) else 1) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Conversational agents that get better by GRPO: serve, train, chat.",
)
app.add_typer(cli_keys.app, name="keys")
app.command()(cli_plan.plan)
app.add_typer(cli_audit.app, name="audit")
for command in (cli_sweeps.tune, cli_sweeps.sweep, cli_sweeps.sweeps):
    app.command()(command)
console = Console()

JobArgument = Annotated[str, typer.Argument(help="Id of a job, as `chatgrpo jobs` shows it.")]
ConfigOption = Annotated[Path | None, typer.Option(help="Settings of the platform; see configs/platform.yaml.")]


@app.callback()
def connect(
    ctx: typer.Context,
    url: Annotated[str, typer.Option(envvar="CHATGRPO_URL", help="Address of the platform.")] = DEFAULT_URL,
) -> None:
    ctx.obj = client = Client(url)
    ctx.call_on_close(client.close)


def _client(ctx: typer.Context) -> Client:
    return cast(Client, ctx.obj)


@app.command()
def serve(config: ConfigOption = None) -> None:
    """Run the platform until Ctrl-C: API, models, scheduler and conversations.

    On this machine alone, or on the Ray cluster that RAY_ADDRESS names.
    """
    platform = load_platform_config(config)
    prepare_ingress(platform)
    console.print("starting the platform (about 20 seconds) ...", style="dim")
    url = f"http://{platform.host}:{platform.port}"

    def tell() -> None:
        console.print(f"[bold green]ready[/] at {url} (API reference: {url}/docs)")
        console.print(f"data in {platform.home}; Ctrl-C stops it", style="dim", highlight=False)

    # The entry file is composition on top of this package: found by name, so that the package does not depend on it.
    importlib.import_module("serve_app").serve_until_stopped(platform, tell)


@app.command()
def demo(
    train_config: Annotated[Path, typer.Option("--train", help="What to train.")] = Path(
        "configs/train/quickstart.yaml"
    ),
    config: ConfigOption = None,
) -> None:
    """Train a real model through the whole platform, then compare it with its base (about 7 minutes on two cores).

    Starts a platform of its own and stops it. Exit status 0 only if the model got better beyond chance.
    """
    module = importlib.import_module("chatgrpo.demo")  # loads reasoning-gym, which takes seconds
    try:
        status = module.run(load_platform_config(config), train_config, console)
    except KeyboardInterrupt:
        console.print("stopped; the platform and its job are gone, checkpoints stay", style="dim")
        raise typer.Exit(130) from None
    raise typer.Exit(status)


@app.command()
def train(
    ctx: typer.Context,
    config: Annotated[Path, typer.Argument(help="YAML file, for example configs/train/quickstart.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a field; may be repeated.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show its progress until it has ended.")] = False,
) -> None:
    """Queue a training job."""
    data = load_yaml(config)
    data = apply_overrides(data, overrides or [], SeedTrainRequest if is_seed_request(data) else TrainConfig)
    submitted = _client(ctx).train(data)
    console.print(f"job [bold]{submitted['job_id']}[/] is {submitted['status']}", highlight=False)
    if follow:
        _follow(_client(ctx), submitted["job_id"])
    else:
        console.print(f"follow it with: chatgrpo job {submitted['job_id']} --follow", style="dim", highlight=False)


@app.command()
def fields() -> None:
    """List every field of a training configuration: default, meaning."""
    for line in fields_of(TrainConfig):
        console.print(Text.assemble((line.name, "bold"), f" = {line.default}"), soft_wrap=True)
        console.print(Text(f"    {line.description}"), style="dim")


@app.command()
def jobs(
    ctx: typer.Context,
    state: Annotated[JobState | None, typer.Option(help="Only jobs in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 20,
) -> None:
    """List jobs, newest first."""
    # Ids are for copying: they are never cut, whatever the terminal's width.
    whole = Column("job", no_wrap=True, min_width=26)
    table = Table(whole, "experiment", "status", "steps", "reward", "created", box=None, pad_edge=False)
    for job in _client(ctx).jobs(state=state, limit=limit):
        progress = job["progress"]
        steps = f"{progress['current_step']}/{progress['total_steps'] or '?'}"
        row = (
            job["job_id"],
            job["experiment_name"],
            job["status"],
            steps,
            _reward(job),
            job["created_at"][5:16].replace("T", " "),
        )
        table.add_row(*row)
    console.print(table)


@app.command()
def job(
    ctx: typer.Context,
    job_id: JobArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until it has ended.")] = False,
) -> None:
    """Show one job."""
    if follow:
        _follow(_client(ctx), job_id)
        return
    console.print_json(data=_client(ctx).job(job_id))


@app.command()
def logs(
    ctx: typer.Context,
    job_id: JobArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the job has ended.")] = False,
    tail: Annotated[int, typer.Option(min=1, help="The last so many lines.")] = 200,
) -> None:
    """Show what a run printed."""
    if not follow:
        typer.echo(_client(ctx).logs(job_id, tail=tail))
        return
    for text in _client(ctx).follow_logs(job_id):
        typer.echo(text, nl=False)


@app.command()
def cancel(ctx: typer.Context, job_id: JobArgument) -> None:
    """Stop a job; its checkpoints stay."""
    view = _client(ctx).cancel(job_id)
    console.print(f"job {view['job_id']} is {view['status']}", highlight=False)


@app.command()
def pause(ctx: typer.Context, job_id: JobArgument) -> None:
    """Stop a job at its next checkpoint, to be resumed later."""
    console.print(f"job {job_id} is {_client(ctx).pause(job_id)['status']}", highlight=False)


@app.command()
def resume(ctx: typer.Context, job_id: JobArgument) -> None:
    """Let a paused job go on."""
    console.print(f"job {job_id} is {_client(ctx).resume(job_id)['status']}", highlight=False)


@app.command()
def retry(ctx: typer.Context, job_id: JobArgument) -> None:
    """Queue a failed or cancelled job again; it goes on from its last checkpoint."""
    console.print(f"job {job_id} is {_client(ctx).retry(job_id)['status']}", highlight=False)


@app.command()
def trajectories(
    ctx: typer.Context,
    job_id: JobArgument,
    offset: Annotated[int, typer.Option(min=0, help="Skip so many episodes.")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=500, help="At most so many.")] = 10,
) -> None:
    """Show what the policy said while it practised, and how it was judged."""
    for found in _client(ctx).trajectories(job_id, offset=offset, limit=limit):
        episode = found["episode"]
        console.rule(f"step {found['step']}  group {found['group_id']}  reward {episode['reward']}", style="dim")
        for message in episode["messages"]:
            console.print(f"{message['role']}:", style="bold", end=" ")
            console.print(message["content"], markup=False, highlight=False)
        console.print(f"judged: {episode['breakdown']}", style="dim", markup=False)


@app.command()
def chat(
    ctx: typer.Context,
    message: Annotated[str | None, typer.Argument(help="What to say; without it a conversation begins.")] = None,
    model: Annotated[str | None, typer.Option(help="A name that `chatgrpo models` shows, or a job's id.")] = None,
    strategy: Annotated[str, typer.Option(help="Decoding preset.")] = "default",
    temperature: Annotated[float | None, typer.Option(min=0, help="0 is greedy.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest reply.")] = None,
    conversation: Annotated[str | None, typer.Option(help="Id of a conversation to continue.")] = None,
) -> None:
    """Talk to a model, once or until Ctrl-D."""
    options: dict[str, Any] = {"model": model, "temperature": temperature, "max_tokens": max_tokens}
    options |= {"strategy": strategy, "conversation_id": conversation}
    if message is not None:
        _say(_client(ctx), message, options)
        return
    while True:
        try:
            message = console.input("[bold]you:[/] ").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if message:
            options["conversation_id"] = _say(_client(ctx), message, options)


@app.command()
def models(ctx: typer.Context) -> None:
    """List the models that can be chatted with."""
    table = Table("model", "source", "default", "description", box=None, pad_edge=False)
    for found in _client(ctx).models():
        description = found["description"] if found["available"] else f"not available: {found['reason']}"
        table.add_row(found["id"], found["source"], "yes" if found["default"] else "", description)
    console.print(table)


@app.command()
def status(ctx: typer.Context) -> None:
    """Show what the platform consists of and how it is."""
    console.print_json(data=_client(ctx).status())


@app.command()
def top(
    ctx: typer.Context,
    once: Annotated[bool, typer.Option(help="Show one look and end.")] = False,
    every_s: Annotated[float, typer.Option("--every", min=0.2, help="Seconds between two looks.")] = 2.0,
) -> None:
    """Alerts, machine, requests and jobs on one screen, until Ctrl-C."""
    client = _client(ctx)
    if once:
        console.print(screen(look(client)))
        return
    with Live(screen(look(client)), console=console, screen=True, auto_refresh=False) as shown:
        while True:
            time.sleep(every_s)
            shown.update(screen(look(client)), refresh=True)


@app.command()
def export(
    job_id: JobArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; must not exist.")],
    merged: Annotated[
        bool, typer.Option("--merged", help="Whole weights that plain transformers loads, adapters folded in.")
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Copy what a job trained out of the platform's folder (on the machine that holds it)."""
    if out.exists():
        raise InvalidRequest(f"{out} exists; give a folder that does not", "--out")
    platform = load_platform_config(config)
    if merged:
        module = importlib.import_module("chatgrpo.training.export")  # loads torch
        source = module.export_merged(job_id, runs_dir=platform.runs_dir, models_dir=platform.models_dir)
    else:
        source = platform.runs_dir / job_id / "export"
        if not source.is_dir():
            raise NotFound(f"job {job_id} has exported nothing under {platform.runs_dir}")
    shutil.copytree(source, out)
    console.print(f"wrote {out}", highlight=False)


def _follow(client: Client, job_id: str) -> None:
    """Ctrl-C stops the showing, not the job."""
    shown = JobProgress()
    try:
        with Live(shown, console=console, refresh_per_second=4):
            view = client.wait(job_id, on_progress=shown.update)
        if not console.is_terminal:
            console.print()  # what is redrawn in a terminal is written once to a file, without a line end
    except KeyboardInterrupt:
        console.print(f"job {job_id} goes on; cancel it with: chatgrpo cancel {job_id}", highlight=False)
        raise typer.Exit(130) from None
    if view["status"] != JobState.SUCCEEDED:
        raise PlatformError(f"job {job_id} {view['status']}: {view.get('error') or 'by request'}")
    if view.get("end_reason"):
        step = view.get("published_step")
        console.print(f"ended early: {view['end_reason']}; published is step {step}", highlight=False, markup=False)
    console.print(f"talk to it with: chatgrpo chat --model {job_id}", highlight=False)


def _say(client: Client, message: str, options: dict[str, Any]) -> str:
    """Prints the reply as it comes; returns the conversation's id."""
    given = {name: value for name, value in options.items() if value is not None}
    conversation_id = ""
    for piece in client.stream(message, **given):
        if isinstance(piece, str):
            console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
        else:
            conversation_id = piece["conversation_id"]
    console.print()
    return conversation_id


def _reward(job: dict[str, Any]) -> str:
    reward = job["metrics"].get("reward")
    return "" if reward is None else f"{reward:.3f}"


if __name__ == "__main__":
    app()
