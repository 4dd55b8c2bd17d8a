"""`chatgrpo plan`: what a training job will hold in memory, said before it is queued."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from chatgrpo.config import load_platform_config, load_yaml
from chatgrpo.errors import InvalidRequest
from chatgrpo.overrides import apply_overrides
from chatgrpo.training.config import TrainConfig
from chatgrpo.training.memory_plan import MemoryPlan, ModelShape
from chatgrpo.training.memory_plan import plan as plan_of

console = Console()


def plan(
    config: Annotated[Path, typer.Argument(help="YAML file, for example configs/train/quickstart.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a field; may be repeated.")
    ] = None,
    platform_config: Annotated[
        Path | None, typer.Option("--config", help="Settings of the platform; see configs/platform.yaml.")
    ] = None,
) -> None:
    """Say how much memory each worker of a training job will hold at most."""
    settings = TrainConfig.model_validate(apply_overrides(load_yaml(config), overrides or [], TrainConfig))
    from chatgrpo.inference.loading import model_config  # imports torch

    try:
        shape = ModelShape.from_config(model_config(settings.model, load_platform_config(platform_config).models_dir))
    except KeyError as error:
        raise InvalidRequest(
            f"{settings.model!r} is not Llama-shaped (its config has no {error}); there is no plan for it", "model"
        ) from error
    console.print(_table(settings, plan_of(settings, shape)))


def _table(settings: TrainConfig, found: MemoryPlan) -> Table:
    table = Table("one worker", "GB", title=settings.experiment_name, show_edge=False)
    for name, count in (
        ("Python and libraries", found.process),
        ("weights", found.weights),
        ("packed weights (rollout)", found.packed_weights),
        ("optimizer", found.optimizer),
        ("activations", found.activations),
        ("KV cache (rollout)", found.cache),
        ("gradients (update)", found.gradients),
        ("workspace (update)", found.workspace),
    ):
        if count:
            table.add_row(name, f"{count / 1e9:.2f}")
    table.add_section()
    table.add_row("peak", f"{found.peak / 1e9:.2f}", style="bold")
    return table
