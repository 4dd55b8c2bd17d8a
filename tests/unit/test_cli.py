"""The command line against a scripted client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from chatgrpo import cli
from chatgrpo.errors import NotFound
from chatgrpo.progress import clock_time, describe
from tests.fake_services import FakeJobs


class FakeClient:
    """Answers from a FakeJobs view; notes what was sent."""

    def __init__(self) -> None:
        self.trained: list[dict[str, Any]] = []
        self.said: list[tuple[str, dict[str, Any]]] = []
        self.jobs_ = FakeJobs()
        self.jobs_.put("j1", status="succeeded")

    def close(self) -> None:
        pass

    def train(self, config: dict[str, Any]) -> dict[str, Any]:
        self.trained.append(config)
        return {"job_id": "j1", "status": "queued"}

    def tune(self, sweep: dict[str, Any]) -> dict[str, Any]:
        self.trained.append(sweep)
        return {"sweep_id": "j1", "status": "queued"}

    def sweep(self, sweep_id: str) -> dict[str, Any]:
        trial = {"trial_id": "t7", "state": "completed", "step": 8, "best": 0.75, "params": {"learning_rate": 0.001}}
        table = {"metric": "eval_reward", "space": {"learning_rate": {}}, "trials": [trial]}
        return self.job(sweep_id) | table | {"best": trial | {"config": {"model": "tiny", "learning_rate": 0.001}}}

    def jobs(self, *, state: str | None, limit: int) -> list[dict[str, Any]]:
        return list(self.jobs_.views.values())

    def job(self, job_id: str) -> dict[str, Any]:
        if job_id not in self.jobs_.views:
            raise NotFound(f"there is no job {job_id}")
        return self.jobs_.views[job_id]

    def wait(self, job_id: str, *, on_progress: Any) -> dict[str, Any]:
        on_progress(self.job(job_id))
        return self.job(job_id)

    def cancel(self, job_id: str) -> dict[str, Any]:
        return {"job_id": job_id, "status": "cancelled"}

    def follow_logs(self, job_id: str) -> list[str]:
        return ["step 1\n", "step 2\n"]

    def trajectories(self, job_id: str, *, offset: int, limit: int) -> list[dict[str, Any]]:
        messages = [{"role": "user", "content": "1 + [b]1[/b]?"}, {"role": "assistant", "content": "2"}]
        episode = {"messages": messages, "reward": 1.0, "breakdown": {"numeric": 1.0}}
        return [{"step": 3, "group_id": "g", "episode": episode}]

    def stream(self, message: str, **options: Any) -> list[Any]:
        self.said.append((message, options))
        return ["Hel", "lo", {"conversation_id": "c1"}]

    def models(self) -> list[dict[str, Any]]:
        return [{"id": "tiny", "source": "base", "default": True, "available": True, "description": "small"}]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    client = FakeClient()
    monkeypatch.setattr(cli, "Client", lambda url: client)
    return client


def run(*arguments: str, says: str | None = None) -> Result:
    return CliRunner().invoke(cli.app, list(arguments), input=says)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: tiny\nmax_steps: 5\n")
    return path


def test_train_sends_file_and_overrides(fake: FakeClient, recipe: Path) -> None:
    result = run("train", str(recipe), "--set", "max_steps=9", "--set", "lora.r=4")
    assert result.exit_code == 0, result.output
    assert fake.trained == [{"model": "tiny", "max_steps": 9, "lora": {"r": 4}}]
    assert "job j1 is queued" in result.output


def test_train_and_follow_ends_with_how_to_go_on(fake: FakeClient, recipe: Path) -> None:
    result = run("train", str(recipe), "--follow")
    assert result.exit_code == 0
    assert "reward 0.412" in result.output
    assert "chatgrpo chat --model j1" in result.output


def test_a_sweep_is_followed_to_its_best_configuration(fake: FakeClient, recipe: Path, tmp_path: Path) -> None:
    file, best = tmp_path / "sweep.yaml", tmp_path / "best.yaml"
    file.write_text(f"train: {recipe.name}\nspace: {{learning_rate: {{type: choice, values: [0.1, 0.001]}}}}\n")
    assert run("tune", str(file), "--out", str(best)).exit_code == 2
    result = run("tune", str(file), "--set", "num_samples=2", "--follow", "--out", str(best))
    assert result.exit_code == 0, result.output
    assert (fake.trained[0]["train"], fake.trained[0]["num_samples"]) == ({"model": "tiny", "max_steps": 5}, 2)
    assert "best: {'learning_rate': 0.001} with eval_reward 0.75" in result.output
    assert best.read_text() == "model: tiny\nlearning_rate: 0.001\n"
    assert run("train", str(best)).exit_code == 0
    assert "t7     completed  8     0.75" in run("sweep", "j1").output


def test_a_job_that_failed_fails_the_command(fake: FakeClient) -> None:
    fake.jobs_.put("j2", status="failed")
    result = run("job", "j2", "--follow")
    assert result.exit_code == 1
    assert "error: job j2 failed: out of tasks" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["train", "nowhere.yaml"], 2, "cannot read nowhere.yaml"),
        (["train", "RECIPE", "--set", "max_step=1"], 2, "did you mean max_steps"),
        (["job", "nobody"], 1, "there is no job nobody"),
        (["export", "j1", "--out", "."], 2, "exists"),
        (["serve", "--config", "nowhere.yaml"], 2, "cannot read nowhere.yaml"),
        (["jobs", "--state", "done"], 2, "'done' is not one of"),
    ],
)
def test_errors_are_one_line_and_a_status(
    fake: FakeClient, recipe: Path, arguments: list[str], status: int, said: str
) -> None:
    result = run(*[str(recipe) if a == "RECIPE" else a for a in arguments])
    assert (result.exit_code, said in result.stderr) == (status, True), result.stderr
    assert "Traceback" not in result.stderr


def test_lists(fake: FakeClient) -> None:
    assert run("jobs").output.split("\n")[1].split() == ["j1", "sums", "succeeded", "12/30", "0.412", "01-02", "03:04"]
    assert "tiny" in run("models").output
    assert run("logs", "j1", "-f").output == "step 1\nstep 2\n"
    assert "job j1 is cancelled" in run("cancel", "j1").output


def test_text_of_a_model_is_never_markup(fake: FakeClient) -> None:
    assert "user: 1 + [b]1[/b]?" in run("trajectories", "j1").output


def test_chat_once(fake: FakeClient) -> None:
    result = run("chat", "Hi", "--model", "j1", "--temperature", "0")
    assert result.output == "Hello\n"
    assert fake.said == [("Hi", {"model": "j1", "temperature": 0.0, "strategy": "default"})]


def test_chat_until_the_end_keeps_the_conversation(fake: FakeClient) -> None:
    assert run("chat", says="one\n\ntwo\n").exit_code == 0
    assert [(text, options.get("conversation_id")) for text, options in fake.said] == [("one", None), ("two", "c1")]


def test_export_copies_the_folder(fake: FakeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATGRPO_HOME", str(tmp_path / "home"))
    exported = tmp_path / "home" / "runs" / "j1" / "export" / "model"
    exported.mkdir(parents=True)
    (exported / "config.json").write_text("{}")
    assert run("export", "j1", "--out", str(tmp_path / "mine")).exit_code == 0
    assert (tmp_path / "mine" / "model" / "config.json").read_text() == "{}"
    assert run("export", "j9", "--out", str(tmp_path / "other")).exit_code == 1


def test_progress_in_words() -> None:
    view: dict[str, Any] = {
        "progress": {"current_step": 12, "total_steps": 30, "eta_s": 185.2},
        "metrics": {"reward": 0.5},
        "pending": None,
    }
    assert describe(view) == "step 12/30  reward 0.500  left 3:05"
    waiting = view | {"pending": {"reason": "2 GPUs are taken", "unblocked_by": "the end of job x"}}
    assert describe(waiting) == "waits: 2 GPUs are taken; the end of job x"
    assert [clock_time(s) for s in (0, 59.6, 3725)] == ["0:00", "1:00", "1:02:05"]
