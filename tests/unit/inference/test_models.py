from __future__ import annotations

from pathlib import Path

import pytest

from chatgrpo.errors import Conflict, InvalidRequest
from chatgrpo.inference import models


@pytest.mark.parametrize(
    ("model_type", "size", "name"),
    [
        ("llama2", "7b", "meta-llama/Llama-2-7b-chat-hf"),
        ("Llama-2", "7B", "meta-llama/Llama-2-7b-chat-hf"),
        ("mistral", None, "mistralai/Mistral-7B-Instruct-v0.3"),
        ("smollm2", "135m", models.SMOLLM2),
    ],
)
def test_aliases(model_type: str, size: str | None, name: str) -> None:
    assert models.resolve_alias(model_type, size) == name


@pytest.mark.parametrize(
    ("model_type", "size", "says"),
    [("gpt9", "7b", "one of llama2"), ("llama2", "8b", "one of 13b, 7b"), ("llama2", None, "one of 13b, 7b")],
)
def test_unknown_aliases_say_what_is_known(model_type: str, size: str | None, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        models.resolve_alias(model_type, size)


def test_what_cannot_be_had_is_refused_with_the_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InvalidRequest, match="hf download") as refused:
        models.check_available("meta-llama/Llama-2-7b-chat-hf")
    assert refused.value.field == "model"
    with pytest.raises(InvalidRequest, match="did you mean 'smollm2-135m-instruct'"):
        models.check_available("smollm2-135m-instuct")
    with pytest.raises(InvalidRequest, match="does not exist"):
        models.check_available("./nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidRequest, match=r"config\.json"):
        models.check_available(str(tmp_path / "empty"))


def test_a_job_is_a_model_once_it_has_exported(tmp_path: Path) -> None:
    export = tmp_path / "JOB1" / "export"
    (tmp_path / "JOB1").mkdir()
    with pytest.raises(Conflict, match="JOB1"):
        models.find("JOB1", runs_dir=tmp_path)
    (export / "adapter").mkdir(parents=True)
    (export / "adapter" / "adapter_config.json").write_text("{}")
    (export / "base_model").write_text("tiny")
    ref = models.find("JOB1", runs_dir=tmp_path)
    assert (ref.base, ref.adapter) == ("tiny", export / "adapter")
    assert [m.name for m in models.list_models(tmp_path)] == [*models.BUILT_IN, "JOB1"]


@pytest.mark.parametrize("name", ["..", "a/../b"])
def test_names_do_not_climb_out_of_the_runs_folder(tmp_path: Path, name: str) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    with pytest.raises(InvalidRequest):
        models.find(name, runs_dir=runs)
