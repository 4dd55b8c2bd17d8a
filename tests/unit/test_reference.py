from __future__ import annotations

from chatgrpo.reference import fields_of
from chatgrpo.training.config import TrainConfig


def test_every_field_is_listed_once_with_its_meaning() -> None:
    lines = list(fields_of(TrainConfig))
    names = [line.name for line in lines]
    assert len(names) == len(set(names))
    assert set(TrainConfig.model_fields) <= set(names)
    assert {"lora.r", "environment[dataset].paths", "rewards[judge].base_url", "resources.cpus_per_worker"} <= set(
        names
    )
    assert [line.name for line in lines if not line.description] == []
    defaults = {line.name: line.default for line in lines}
    assert (defaults["epsilon"], defaults["lora"], defaults["environment[dataset].paths"]) == (
        "0.2",
        "null",
        "required",
    )
