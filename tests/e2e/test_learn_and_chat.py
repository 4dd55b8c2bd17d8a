"""The main job through the real service: HTTP -> queue -> Ray Train -> checkpoint -> chat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest

from chatgrpo.client import Client
from chatgrpo.config import PlatformConfig
from chatgrpo.embedded import free_port, running_platform
from chatgrpo.errors import Conflict, NotFound
from chatgrpo.training.export import export_merged
from tests.toy import TOY

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

CONFIG: dict[str, Any] = TOY | {
    "experiment_name": "toy tool",
    # The head as well: that of a random model says nothing yet.
    "lora": {
        "r": 32,
        "alpha": 64,
        "target_modules": [f"{p}_proj" for p in ("q", "k", "v", "o", "gate", "up", "down")] + ["lm_head"],
    },
    "prompts_per_step": 8,
    "num_generations": 32,
    "rollout_batch_size": 256,
    "max_steps": 40,
    "num_eval_prompts": 20,
    "resources": {"threads_per_worker": 2},
    "save_steps": None,
}


def test_a_tool_is_learnt_over_http_and_then_chatted_with(tmp_path: Path, models_dir: Path) -> None:
    (tmp_path / "models").symlink_to(models_dir)
    platform = PlatformConfig(home=tmp_path, port=free_port(), default_model="tiny")
    others = set(psutil.Process().children(recursive=True))
    with running_platform(platform, tmp_path / "serve.log") as client:
        family = set(psutil.Process().children(recursive=True)) - others
        job_id = _learn(client)
        _chat(client, job_id)
        _look_around(client, job_id)
    assert [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
    merged = export_merged(job_id, runs_dir=platform.runs_dir, models_dir=platform.models_dir)
    assert (merged / "model.safetensors").is_file()
    assert (platform.runs_dir / job_id / "export" / "adapter" / "adapter_model.safetensors").is_file()


def _learn(client: Client) -> str:
    job_id = client.train(CONFIG)["job_id"]
    with pytest.raises((Conflict, NotFound)):
        client.chat("ab", model=job_id)
    view = client.wait(job_id)
    assert view["status"] == "succeeded", view["error"] or client.logs(job_id)
    rewards = [point["reward"] for point in view["reward_curve"]]
    assert max(rewards[:5]) < 0.2
    assert sum(rewards[-5:]) / 5 > 0.6
    first, last = view["evaluations"][0], view["evaluations"][-1]
    assert last["eval_reward"] > first["eval_reward"] + 0.3
    return str(job_id)


def _chat(client: Client, job_id: str) -> None:
    """The trained policy calls its tool, the base does not, and a conversation goes on."""
    options: dict[str, Any] = {"temperature": 0.0, "max_tokens": 8}
    trained = client.chat("qz", model=job_id, **options)
    base = client.chat("qz", **options)
    assert trained["response"].count("c") >= 6
    assert base["response"].count("c") < 6
    assert trained["metadata"]["model"] == job_id
    pieces = list(client.stream("qz", model=job_id, **options))
    assert isinstance(pieces[-1], dict)
    assert pieces[-1]["response"] == trained["response"] == "".join(p for p in pieces[:-1] if isinstance(p, str))
    again = client.chat("more", model=job_id, conversation_id=trained["conversation_id"], **options)
    assert again["turn_count"] == 2


def _look_around(client: Client, job_id: str) -> None:
    assert job_id in {m["id"] for m in client.models()}
    assert client.health()["status"] == "healthy"
    assert client.metrics()["training_metrics"]["completed_jobs"] == 1
    episode = client.trajectories(job_id, limit=1)[0]["episode"]
    assert len(episode["turns"]) == 2
    assert len(episode["token_ids"]) == len(episode["completion_mask"]) == len(episode["logprobs"])
    assert "step 40/40" in client.logs(job_id)
