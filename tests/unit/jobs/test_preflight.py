from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from chatgrpo.errors import InvalidRequest
from chatgrpo.jobs.preflight import Preflight, check
from chatgrpo.training.config import TrainConfig

TOY: dict[str, Any] = {
    "environment": {"type": "plugin", "name": "toy_tool"},
    "rewards": [{"type": "environment"}],
}


def config(**fields: Any) -> TrainConfig:
    return TrainConfig.model_validate(TOY | fields)


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({"environment": {"type": "reasoning_gym", "dataset": "chain_som"}}, "environment.dataset", "mean chain_sum"),
        (
            {"environment": {"type": "reasoning_gym", "params": {"max_term": 2}}},
            "environment.params.max_term",
            "no parameter 'max_term'; did you mean max_terms",
        ),
        (
            {"environment": {"type": "reasoning_gym", "params": {"min_terms": 4, "max_terms": 2}}},
            "environment.params",
            "max_terms must be >= min_terms",
        ),
        ({"environment": {"type": "plugin", "name": "toy_tol"}}, "environment.name", "did you mean toy_tool"),
        (
            {"environment": {"type": "plugin", "name": "toy_tool", "params": {"x": 1}}},
            "environment.params",
            "unexpected keyword argument 'x'",
        ),
        (
            {"environment": {"type": "tools", "tools": ["calculater"], "tasks": {"type": "reasoning_gym"}}},
            "environment.tools",
            "did you mean calculator",
        ),
        ({"rewards": [{"type": "plugin", "name": "nobody"}]}, "rewards.name", "no reward is registered as 'nobody'"),
        ({"rewards": [{"type": "regex", "pattern": "("}]}, "rewards.pattern", "not a regular expression"),
    ],
)
def test_unknown_names_and_parameters_are_named_with_the_way_out(fields: dict[str, Any], field: str, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says) as refused:
        check(config(**fields))

    assert refused.value.field == field


def test_a_plug_in_is_read_as_it_is_now(tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text("print('imported')\n")
    preflight = Preflight([str(plugin)])
    wanted = config(rewards=[{"type": "plugin", "name": "mine"}])

    with pytest.raises(InvalidRequest, match="no reward is registered as 'mine'") as refused:
        preflight(wanted)
    assert refused.value.field == "rewards.name"
    plugin.write_text(
        "from chatgrpo.rewards.registry import reward\n@reward('mine')\ndef mine(task, episode): return 1.0\n"
    )
    preflight(wanted)
    # It passed with this file: nobody looks again, not even at a file that now breaks, until its time stamp changes.
    stamp = plugin.stat().st_mtime_ns
    plugin.write_text("raise SystemExit\n")
    os.utime(plugin, ns=(stamp, stamp))
    preflight(wanted)


def test_a_look_that_cannot_be_taken_is_left_to_the_run(tmp_path: Path) -> None:
    plugin = tmp_path / "exits.py"
    plugin.write_text("raise SystemExit(3)\n")

    Preflight([str(plugin)])(config())
