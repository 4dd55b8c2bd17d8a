"""Chat with several jobs' adapters on one copy of their base, on the tiny model."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from chatgrpo.inference.chat_runner import ChatRunner
from chatgrpo.inference.deltas import ChatDelta
from chatgrpo.inference.engine import SamplingParams
from chatgrpo.inference.loading import load
from chatgrpo.inference.shared_base import SharedBase
from chatgrpo.inference.speakers import Speakers
from chatgrpo.messages import user
from chatgrpo.training.export import replace_folder

GREEDY = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)


class Jobs:
    """Run folders of jobs that exported a LoRA adapter of the tiny model, and a runner that knows them."""

    def __init__(self, runs_dir: Path, models_dir: Path) -> None:
        self.runs_dir, self.models_dir = runs_dir, models_dir
        self.base = SharedBase(load("tiny", models_dir=models_dir))
        self.speakers = Speakers(models_dir=models_dir, runs_dir=runs_dir, dtype=torch.float32, device="cpu")

    def publish(self, job: str, *, seed: int, use_dora: bool = False) -> None:
        torch.manual_seed(seed)
        config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", use_dora=use_dora)
        model = get_peft_model(self.base.fork().model, config)
        for name, parameter in model.named_parameters():
            if "lora_" in name and "magnitude" not in name:
                torch.nn.init.normal_(parameter, std=0.1)
        scratch = self.runs_dir / job / ".export-new"
        model.save_pretrained(scratch / "adapter")
        (scratch / "base_model").write_text("tiny", encoding="utf-8")
        replace_folder(scratch, self.runs_dir / job / "export")

    def runner(self, *, max_models: int = 1, max_adapters: int = 8) -> ChatRunner:
        return ChatRunner(
            self.speakers.load,
            max_models=max_models,
            max_adapters=max_adapters,
            base_of=self.speakers.base_of,
            revision=self.speakers.revision,
            room_timeout_s=0.05,
        )


@pytest.fixture
def jobs(tmp_path: Path, models_dir: Path) -> Jobs:
    return Jobs(tmp_path, models_dir)


@pytest.fixture
async def runner(jobs: Jobs) -> AsyncIterator[ChatRunner]:
    runner = jobs.runner()
    yield runner
    runner.close()


async def ask(runner: ChatRunner, model: str, text: str = "hello") -> tuple[str, str]:
    """(version, reply)"""
    deltas: list[ChatDelta] = [delta async for delta in runner.stream(model, [user(text)], GREEDY)]
    (version,) = {delta.model_version for delta in deltas}
    return version, "".join(delta.text for delta in deltas)


async def test_adapters_share_one_copy_of_their_base(jobs: Jobs, runner: ChatRunner) -> None:
    for seed, job in enumerate(("j1", "j2")):
        jobs.publish(job, seed=seed)
    said = await asyncio.gather(*(ask(runner, name) for name in ("j1", "tiny", "j2")))
    # One place for a whole model held all three.
    assert set(runner.status()["loaded_models"]) == {"j1", "tiny", "j2"}
    assert len({id(loaded.speaker.engine) for loaded in runner._loaded.values()}) == 1
    assert len({reply for _, reply in said}) == 3
    for name, (version, reply) in zip(("j1", "tiny", "j2"), said, strict=True):
        assert version.split("@")[0] == name
        merged = ChatRunner(lambda name: _merged(jobs, name), max_models=1)
        assert (await ask(merged, name))[1] == reply
        merged.close()


def _merged(jobs: Jobs, name: str):  # type: ignore[no-untyped-def]
    speakers = Speakers(models_dir=jobs.models_dir, runs_dir=jobs.runs_dir, dtype=torch.float32, device="cpu")
    return speakers._speaker(speakers._base(name), name)


async def test_the_least_recently_used_adapter_makes_room(jobs: Jobs) -> None:
    for seed in range(3):
        jobs.publish(f"j{seed}", seed=seed)
    runner = jobs.runner(max_adapters=2)
    for name in ("j0", "j1", "j0", "j2"):
        await ask(runner, name)
    assert runner.status()["loaded_models"] == ["j0", "j2"]
    runner.close()
    assert len(runner._loaded["j0"].speaker.engine._adapters) == 2  # type: ignore[attr-defined]


async def test_an_adapter_that_cannot_share_is_a_model_of_its_own(jobs: Jobs) -> None:
    jobs.publish("plain", seed=0)
    jobs.publish("dora", seed=1, use_dora=True)
    runner = jobs.runner(max_models=2)
    first, second = await asyncio.gather(ask(runner, "plain"), ask(runner, "dora"))
    assert (first[0].split("@")[0], second[0]) == ("plain", "dora")
    assert len({id(loaded.speaker.engine) for loaded in runner._loaded.values()}) == 2
    runner.close()


async def test_new_versions_under_load_fail_no_request(jobs: Jobs, runner: ChatRunner) -> None:
    jobs.publish("hot", seed=0)
    jobs.publish("calm", seed=100)
    answers: Counter[tuple[str, str]] = Counter()
    done = asyncio.Event()

    async def client(model: str) -> None:
        while not done.is_set():
            answers[await ask(runner, model)] += 1

    async with asyncio.TaskGroup() as clients:
        for model in ("hot", "hot", "hot", "calm", "tiny"):
            clients.create_task(client(model))
        for seed in range(1, 5):
            before = await ask(runner, "hot")
            await asyncio.to_thread(jobs.publish, "hot", seed=seed)
            after = await ask(runner, "hot")
            assert after != before  # the next request has the new one
        done.set()
    # No client raised; every version of every model said one thing only, so none was mixed with another.
    versions = Counter(version for version, _ in answers)
    assert set(versions.values()) == {1}
    assert len({version for version in versions if version.startswith("hot@")}) >= 4
    assert {version.split("@")[0] for version in versions} == {"hot", "calm", "tiny"}
    assert runner.status()["active_requests"] == 0
