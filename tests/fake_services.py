"""What the API talks to, as fakes: jobs in a dict, a model that says what it is told to."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from chatgrpo.errors import NotFound, Unavailable
from chatgrpo.inference.deltas import ChatDelta, TokenLogprob
from chatgrpo.inference.engine import FinishReason, SamplingParams
from chatgrpo.jobs.job import JobState
from chatgrpo.messages import Message

Rows = list[dict[str, Any]]


class FakeJobs:
    """JobService in a dict. `views` are what the API shows; `log` is every job's log, which ends when `ended`."""

    def __init__(self) -> None:
        self.views: dict[str, dict[str, Any]] = {}
        self.configs: dict[str, dict[str, Any]] = {}
        self.log = "step 1\nstep 2\n"
        self.steps: Rows = []
        self.episodes: Rows = [{"episode": i} for i in range(100)]
        self.ended = True
        self.calls: list[tuple[str, str]] = []
        self.down = False

    def put(self, job_id: str, *, status: str = "running", owner: str = "local") -> None:
        self.views[job_id] = {
            "job_id": job_id,
            "status": status,
            "owner": owner,
            "experiment_name": "sums",
            "created_at": "2026-01-02T03:04:05.678+00:00",
            "progress": {"progress_percent": 40.0, "current_step": 12, "total_steps": 30, "eta_s": 185.0},
            "metrics": {"reward": 0.4125},
            "pending": None,
            "error": "out of tasks" if status == "failed" else None,
        }

    async def submit(self, config: dict[str, Any], *, owner: str) -> dict[str, Any]:
        job_id = f"job-{len(self.views)}"
        self.put(job_id, status="queued", owner=owner)
        self.configs[job_id] = config
        if "sweep" in config:
            return {"job_id": job_id, "status": "queued", "experiment_name": config["sweep"]["experiment_name"]}
        batch_size = config["prompts_per_step"] * config["num_generations"]
        resources = {"cpu_cores": 1.0, "memory_gb": 0.0, "gpu_count": 0.0}
        return {
            "job_id": job_id,
            "status": "queued",
            "experiment_name": config["experiment_name"],
            "estimated_start_time": None,
            "configuration": {
                "agent_type": "SingleTurnAgent",
                "num_epochs": config["num_epochs"],
                "batch_size": batch_size,
                "resources": resources,
            },
            "tracking": {"experiment_url": f"/api/v2/jobs/{job_id}"},
        }

    async def get(self, job_id: str, *, owner: str | None) -> dict[str, Any]:
        if job_id not in self.views or owner not in {None, self.views[job_id]["owner"]}:
            raise NotFound(f"there is no job {job_id}")
        return self.views[job_id]

    async def list(
        self, *, owner: str | None, state: JobState | None = None, limit: int = 50, sweeps_only: bool = False
    ) -> list[dict[str, Any]]:
        self._require_up()
        mine = [v for v in self.views.values() if owner in {None, v["owner"]} and state in {None, v["status"]}]
        return [v for v in mine[::-1] if not sweeps_only or "sweep" in self.configs.get(v["job_id"], {})][:limit]

    async def sweep(self, job_id: str, *, owner: str | None) -> dict[str, Any]:
        view = await self.get(job_id, owner=owner)
        if "sweep" not in self.configs.get(job_id, {}):
            raise NotFound(f"job {job_id} is no sweep")
        return view | {"trials": [], "best": None, "space": self.configs[job_id]["sweep"]["space"]}

    async def _act(self, act: str, job_id: str, owner: str | None) -> dict[str, Any]:
        view = await self.get(job_id, owner=owner)
        self.calls.append((act, job_id))
        return view | {"acted": act}

    async def cancel(self, job_id: str, *, owner: str | None) -> dict[str, Any]:
        return await self._act("cancel", job_id, owner)

    async def pause(self, job_id: str, *, owner: str | None) -> dict[str, Any]:
        return await self._act("pause", job_id, owner)

    async def resume(self, job_id: str, *, owner: str | None) -> dict[str, Any]:
        return await self._act("resume", job_id, owner)

    async def retry(self, job_id: str, *, owner: str | None) -> dict[str, Any]:
        return await self._act("retry", job_id, owner)

    async def delete(self, job_id: str, *, owner: str | None) -> dict[str, Any]:
        return await self._act("delete", job_id, owner)

    async def logs(self, job_id: str, *, owner: str | None, tail: int = 200) -> str:
        await self.get(job_id, owner=owner)
        return "\n".join(self.log.splitlines()[-tail:])

    async def log_chunk(self, job_id: str, *, owner: str | None, offset: int = 0) -> dict[str, Any]:
        await self.get(job_id, owner=owner)
        return {"text": self.log[offset:], "next_offset": max(offset, len(self.log)), "ended": self.ended}

    async def events(self, job_id: str, *, owner: str | None) -> Rows:
        await self.get(job_id, owner=owner)
        return [{"to": "queued"}]

    async def checkpoints(self, job_id: str, *, owner: str | None) -> Rows:
        await self.get(job_id, owner=owner)
        return [{"step": 10}]

    async def metrics(self, job_id: str, *, owner: str | None, after_step: int = -1) -> Rows:
        await self.get(job_id, owner=owner)
        return [line for line in self.steps if line["step"] > after_step]

    async def trajectories(
        self, job_id: str, *, owner: str | None, offset: int = 0, limit: int = 50, step: int | None = None
    ) -> Rows:
        await self.get(job_id, owner=owner)
        return [e for e in self.episodes if step in {None, e.get("step")}][offset : offset + limit]

    def _require_up(self) -> None:
        if self.down:
            raise Unavailable("the job scheduler is restarting; try again in a moment")

    async def queue(self) -> dict[str, Any]:
        self._require_up()
        states = Counter(v["status"] for v in self.views.values())
        return {"states": {state.value: states[state.value] for state in JobState}}


class FakeChat:
    """ChatService that says `pieces` one by one; `error` comes before the piece of index `error_at`. With `hold`, the
    reply waits after its first piece until it is cancelled."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces or ("Hel", "lo")
        self.calls: list[tuple[str, list[dict[str, Any]], SamplingParams]] = []
        self.error: Exception | None = None
        self.error_at = 0
        self.hold = False
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.down = False

    async def stream(
        self, model: str, messages: Sequence[Message], params: SamplingParams
    ) -> AsyncGenerator[ChatDelta, None]:
        self.calls.append((model, [m.to_dict() for m in messages], params))
        last = len(self.pieces) - 1
        try:
            for i, piece in enumerate(self.pieces):
                if self.error is not None and i == self.error_at:
                    raise self.error
                reason = FinishReason.STOP if i == last else None
                yield ChatDelta(
                    text=piece,
                    num_tokens=2,
                    finish_reason=reason,
                    model_version=f"{model}@0",
                    num_prompt_tokens=sum(len(m.content.split()) for m in messages),
                    logprobs=(TokenLogprob(piece, -0.5),) if params.logprobs else (),
                )
                self.started.set()
                if self.hold:
                    await asyncio.Event().wait()
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise

    async def status(self) -> dict[str, Any]:
        if self.down:
            raise Unavailable("no chat replica answers")
        return {"loaded_models": ["tiny"], "active_requests": 0, "tokens_generated": 7}
