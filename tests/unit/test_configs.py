"""The files under configs/ say what the code does."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from chatgrpo.config import PlatformConfig, load_platform_config, load_yaml
from chatgrpo.errors import InvalidRequest
from chatgrpo.gateway.exposure import is_loopback, refuse_open_door
from chatgrpo.training.config import TrainConfig

ROOT = Path(__file__).parents[2]


def test_platform_yaml_shows_every_default() -> None:
    shown = load_yaml(ROOT / "configs/platform.yaml")
    assert shown == PlatformConfig().model_dump(mode="json")


@pytest.mark.parametrize("path", sorted((ROOT / "configs/train").glob("*.yaml")), ids=lambda p: p.name)
def test_training_recipes_are_valid(path: Path) -> None:
    TrainConfig.model_validate(load_yaml(path))


def test_a_wrong_setting_is_named_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "platform.yaml"
    path.write_text("port: 70000\n")
    with pytest.raises(InvalidRequest, match=r"platform\.yaml: Input should be less than or equal to 65535") as refused:
        load_platform_config(path)
    assert refused.value.field == "port"
    path.write_text("prt: 1\n")
    with pytest.raises(InvalidRequest, match="Extra inputs are not permitted"):
        load_platform_config(path)
    path.write_text("decoding_presets: {mine: {}}\n")
    with pytest.raises(InvalidRequest, match="needs a preset named `default`"):
        load_platform_config(path)


def test_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "platform.yaml"
    path.write_text(f"port: 9000\nhome: {tmp_path}\n")
    monkeypatch.setenv("CHATGRPO_PORT", "9001")
    monkeypatch.setenv("CHATGRPO_CONFIG", str(path))
    assert (load_platform_config().port, load_platform_config().home) == (9001, tmp_path)


@pytest.mark.parametrize(
    ("host", "safe"),
    [("127.0.0.1", True), ("127.8.9.1", True), ("::1", True), ("localhost", True)]
    + [(host, False) for host in ("0.0.0.0", "::", "10.0.0.5", "platform.example", "127.0.0.1.evil.example", "")],
)
def test_only_loopback_may_be_open(host: str, safe: bool, tmp_path: Path) -> None:
    platform = PlatformConfig(home=tmp_path)
    assert is_loopback(host) is safe
    if not safe:
        with pytest.raises(InvalidRequest, match="there are no API keys yet") as refused:
            refuse_open_door(host, platform=platform)
        assert refused.value.field == "host"


def test_serve_and_cluster_files_name_what_exists() -> None:
    serve = yaml.safe_load((ROOT / "configs/serve.yaml").read_text())
    source = (ROOT / "serve_app.py").read_text()
    for application in serve["applications"]:
        module, function = application["import_path"].split(":")
        assert module == "serve_app"
        assert f"def {function}(" in source
        for deployment in application["deployments"]:
            assert f"{deployment['name']}," in source
    assert is_loopback(serve["http_options"]["host"])
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    assert cluster["head_node_type"] in cluster["available_node_types"]
    assert all(
        kind["max_workers"] >= kind.get("min_workers", 0)
        for kind in cluster["available_node_types"].values()
        if "max_workers" in kind
    )
