"""What is wrong now, and what nobody wants to hear about for a while."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field

from chatgrpo.api.errors import RESPONSES
from chatgrpo.api.identity import Owner
from chatgrpo.api.services import Services, ServicesOf
from chatgrpo.errors import NotFound

router = APIRouter(prefix="/api/v2/alerts", tags=["operations"], responses=RESPONSES)


class NewSilence(BaseModel):
    """Which alerts nobody is told of, and for how long."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    rule: str | None = Field(None, max_length=128, description="Name of a rule; absent: every rule.")
    labels: dict[str, str] = Field(default_factory=dict, description='For example {"job_id": "..."}; empty: all.')
    seconds: float = Field(gt=0, le=30 * 86400, description="For how long.")
    reason: str = Field("", max_length=500, description="For those who look at it later.")


@router.get("")
async def list_alerts(services: ServicesOf, owner: Owner) -> dict[str, Any]:
    """Firing alerts, the gravest first, then those whose condition does not hold long enough yet; about the platform
    and about the caller's own jobs."""
    found = await services.monitor.alerts()
    return {"alerts": [alert for alert in found if await _may_see(services, owner, alert["labels"].get("job_id"))]}


async def _may_see(services: Services, owner: str, job_id: str | None) -> bool:
    if job_id is None:
        return True
    try:
        await services.jobs.get(job_id, owner=owner)
    except NotFound:
        return False
    return True


@router.get("/silences")
async def list_silences(services: ServicesOf) -> dict[str, Any]:
    """Silences that last."""
    return {"silences": await services.monitor.silences()}


@router.post("/silences", status_code=201)
async def silence(body: NewSilence, services: ServicesOf, owner: Owner) -> dict[str, Any]:
    """Such alerts are still shown, but no handler is told."""
    return await services.monitor.silence(by=owner, **body.model_dump())


@router.delete("/silences/{silence_id}", status_code=204)
async def end_silence(silence_id: Annotated[str, Path(min_length=1, max_length=64)], services: ServicesOf) -> None:
    """From now on handlers are told again."""
    await services.monitor.unsilence(silence_id)
