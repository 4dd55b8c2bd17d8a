"""From an environment's configuration to its tasks; plug-ins register theirs by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Literal

from chatgrpo.environments.base import TaskSource
from chatgrpo.environments.config import (
    DatasetConfig,
    DialogueConfig,
    EnvironmentConfig,
    PluginEnvironmentConfig,
    PromptsConfig,
    ReasoningGymConfig,
    ToolsConfig,
)
from chatgrpo.errors import InvalidRequest

Split = Literal["train", "eval"]

# (split, seed, num_eval, **params) -> TaskSource
SourceFactory = Callable[..., TaskSource]

ENTRY_POINT_GROUP = "chatgrpo.environments"
_sources: dict[str, SourceFactory] = {}


def task_source(name: str) -> Callable[[SourceFactory], SourceFactory]:
    """Registers `factory(*, split, seed, num_eval, **params) -> TaskSource` under `name`.

    The two splits must share no question; `num_eval` is the number of held-out tasks that is asked for."""

    def register(factory: SourceFactory) -> SourceFactory:
        _sources[name] = factory
        return factory

    return register


def build_source(config: EnvironmentConfig, *, split: Split, seed: int, num_eval: int) -> TaskSource:
    """The tasks of one split; the same arguments give the same tasks in every process.

    Raises InvalidRequest for unknown names, impossible parameters and broken files."""
    # Imported here: reasoning-gym takes seconds and pyarrow is heavy; most processes need one of them or none.
    match config:
        case ReasoningGymConfig():
            from chatgrpo.environments.reasoning_gym import reasoning_gym_source

            return reasoning_gym_source(config, split=split, seed=seed, num_eval=num_eval)
        case DatasetConfig():
            from chatgrpo.environments.dataset import dataset_source

            return dataset_source(config, split=split, num_eval=num_eval)
        case PromptsConfig():
            from chatgrpo.environments.dataset import prompts_source

            return prompts_source(config, split=split, num_eval=num_eval)
        case DialogueConfig():
            from chatgrpo.environments.dialogue import dialogue_source

            return dialogue_source(config, split=split, num_eval=num_eval)
        case ToolsConfig():
            from chatgrpo.environments.tools import ToolSource

            tasks = build_source(config.tasks, split=split, seed=seed, num_eval=num_eval)
            return ToolSource(tasks, config)
        case PluginEnvironmentConfig():
            return _plugin_source(config, split=split, seed=seed, num_eval=num_eval)


def check_source(config: EnvironmentConfig) -> None:
    """Raises InvalidRequest for names and parameters that `build_source` would refuse; draws no task, reads no file."""
    match config:
        case ReasoningGymConfig():
            from chatgrpo.environments.reasoning_gym import check

            check(config)
        case ToolsConfig():
            from chatgrpo.environments.toolbox import find_tool

            for name in config.tools:
                find_tool(name)
            check_source(config.tasks)
        case PluginEnvironmentConfig():
            _bind(config, split="train", seed=0, num_eval=0)
        case DatasetConfig() | PromptsConfig() | DialogueConfig():
            pass


def _plugin_source(config: PluginEnvironmentConfig, *, split: Split, seed: int, num_eval: int) -> TaskSource:
    factory, arguments = _bind(config, split=split, seed=seed, num_eval=num_eval)
    return factory(**arguments)


def _bind(
    config: PluginEnvironmentConfig, *, split: Split, seed: int, num_eval: int
) -> tuple[SourceFactory, dict[str, Any]]:
    """The registered function and what it will be called with."""
    factory = _find(config.name)
    arguments: dict[str, Any] = {**config.params, "split": split, "seed": seed, "num_eval": num_eval}
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        raise InvalidRequest(f"{config.name} does not take {config.params}: {error}", "environment.params") from error
    return factory, arguments


def _find(name: str) -> SourceFactory:
    import_module("chatgrpo.environments.toy_tool")  # registers itself; late, because it imports this module
    if name in _sources:
        return _sources[name]
    known = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    if name in known:
        factory: SourceFactory = known[name].load()
        return _sources.setdefault(name, factory)
    names = sorted({*_sources, *known})
    near = get_close_matches(name, names, n=3)
    raise InvalidRequest(
        f"no environment is registered as {name!r}; "
        + (f"did you mean {', '.join(near)}? " if near else "")
        + f"known: {', '.join(names)}. Name its module under `plugins` in the platform configuration",
        "environment.name",
    )
