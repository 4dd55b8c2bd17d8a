"""How much is used, what it costs, and what will be needed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from fastapi import APIRouter

from chatgrpo.api.errors import RESPONSES
from chatgrpo.api.identity import Owner
from chatgrpo.api.services import ServicesOf
from chatgrpo.jobs.job import JobState
from chatgrpo.monitoring.advice_config import AdviceConfig
from chatgrpo.monitoring.analytics import job_cost

router = APIRouter(prefix="/api/v2/advice", tags=["operations"], responses=RESPONSES)

# The newest jobs of the caller whose cost is told.
NUM_JOBS = 20


@router.get("")
async def read_advice(services: ServicesOf, owner: Owner) -> dict[str, Any]:
    """Rates and percentiles over windows, costs, and how many chat replicas and training workers will be needed, with
    the reason and how sure that is. `applied` says whether Serve follows the advice."""
    found = await services.monitor.advice()
    jobs = await services.jobs.list(owner=owner, limit=NUM_JOBS)
    views = await asyncio.gather(*(services.jobs.get(job["job_id"], owner=owner) for job in jobs))
    costs = [cost_of(view, services.config.advice, now=services.clock.now()) for view in views]
    return found | {"costs": found["costs"] | {"jobs": costs}}


def cost_of(view: Mapping[str, Any], config: AdviceConfig, *, now: float) -> dict[str, Any]:
    """What a job has used, in money; what runs now is counted until now."""
    usage = view.get("usage", {})
    cpu_hours, gpu_hours = float(usage.get("cpu_hours", 0.0)), float(usage.get("gpu_hours", 0.0))
    if JobState(view["status"]).is_active and view.get("state_since"):
        asked = view["resources"]["requested"]
        share = view["resources"]["granted_workers"] / max(1, asked["workers"])
        hours = max(0.0, now - datetime.fromisoformat(view["state_since"]).timestamp()) / 3600
        cpu_hours += hours * share * asked["cpu_cores"]
        gpu_hours += hours * share * asked["gpu_count"]
    cost = job_cost(cpu_hours=cpu_hours, gpu_hours=gpu_hours, config=config)
    return {"job_id": view["job_id"], "cost": round(cost, 6), "cpu_hours": cpu_hours, "gpu_hours": gpu_hours}
