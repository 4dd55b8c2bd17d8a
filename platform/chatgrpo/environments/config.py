"""What can be asked of an environment, as data. Reading this loads no task and no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from chatgrpo.config import Strict


class ReasoningGymConfig(Strict):
    """Procedural tasks with their own verifier, from the `reasoning-gym` package."""

    type: Literal["reasoning_gym"] = "reasoning_gym"
    dataset: str = Field("chain_sum", description="Name of a reasoning-gym data set, for example chain_sum or gcd.")
    params: dict[str, Any] = Field(default_factory=dict, description="Parameters of that data set, by its own names.")
    size: int = Field(
        1000, ge=1, description="Most distinct training questions to draw; a data set with fewer gives all it has."
    )
    system_prompt: str | None = Field(None, description="System message before every question; none by default.")
    prompt_suffix: str = Field("", description="Text added after every question.")


class DatasetConfig(Strict):
    """Single-turn tasks from files: JSONL, Parquet or a Hugging Face data set folder, with `prompt` or `messages`."""

    type: Literal["dataset"] = "dataset"
    paths: list[str] = Field(min_length=1, description="Files or folders; *.jsonl, *.json, *.parquet.")
    eval_paths: list[str] = Field(default_factory=list, description="Held-out files; empty: split from `paths`.")
    eval_fraction: float = Field(0.1, ge=0, lt=1, description="Share of questions held out when `eval_paths` is empty.")
    system_prompt: str | None = Field(None, description="System message put before tasks that have none.")


class PromptsConfig(Strict):
    """Single-turn tasks written out in the request itself. They have no answer: score them by rules or by a judge."""

    type: Literal["inline"] = "inline"
    prompts: list[str] = Field(min_length=1, description="What the policy is asked; repeats count once.")
    eval_fraction: float = Field(0.1, ge=0, lt=1, description="Share of prompts held out when evaluation is on.")
    system_prompt: str | None = Field(None, description="System message put before every prompt.")


class DialogueConfig(Strict):
    """Multi-turn dialogue over the tasks of files: a scripted user answers each reply until the goal or the limit."""

    type: Literal["dialogue"] = "dialogue"
    paths: list[str] = Field(
        min_length=1, description="JSONL with `messages` (opening) and `user_turns` (later turns)."
    )
    eval_paths: list[str] = Field(default_factory=list, description="Held-out files; empty: split from `paths`.")
    eval_fraction: float = Field(0.1, ge=0, lt=1, description="Share of dialogues held out when `eval_paths` is empty.")
    max_turns: int = Field(4, ge=1, description="The dialogue ends after this many replies of the policy.")
    system_prompt: str | None = Field(None, description="System message put before dialogues that have none.")


class ToolsConfig(Strict):
    """Multi-turn tasks in which the policy may call tools before it answers."""

    type: Literal["tools"] = "tools"
    tools: list[str] = Field(min_length=1, description="Registered tool names, for example `calculator`.")
    tasks: Annotated[ReasoningGymConfig | DatasetConfig, Field(discriminator="type")] = Field(
        description="Where the questions come from."
    )
    max_turns: int = Field(4, ge=1, description="The episode ends after this many replies of the policy.")
    tool_timeout_s: float = Field(10.0, gt=0, description="A tool call that takes longer answers with an error text.")


class PluginEnvironmentConfig(Strict):
    """An environment registered by a plug-in under `name`."""

    type: Literal["plugin"] = "plugin"
    name: str = Field(description="Name given to @task_source(name), or an entry point of group chatgrpo.environments.")
    params: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of the registered function.")


EnvironmentConfig = Annotated[
    ReasoningGymConfig | DatasetConfig | PromptsConfig | DialogueConfig | ToolsConfig | PluginEnvironmentConfig,
    Field(discriminator="type"),
]
