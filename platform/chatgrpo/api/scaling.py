"""More or fewer replicas by an operator's word."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from chatgrpo.api.errors import RESPONSES
from chatgrpo.api.services import ServicesOf
from chatgrpo.gateway.identity import LOCAL, Identity

logger = logging.getLogger(__name__)

router = APIRouter(prefix="/api/v2/system", tags=["operations"], responses=RESPONSES)


class ScaleRequest(BaseModel):
    """By how much, and what."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    scale_factor: float = Field(
        gt=0, le=100, description="Times the replicas wanted now; more is rounded up, fewer is rounded down."
    )
    apply_to_all: bool = Field(False, description="The replicas of the HTTP API too, not only those that chat.")


class ScaledDeployment(BaseModel):
    """One deployment of Ray Serve."""

    deployment: str
    replicas_before: int = Field(description="Wanted before.")
    replicas: int = Field(description="Wanted now; Serve starts or stops them in the seconds after.")
    min_replicas: int
    max_replicas: int
    bounded: bool = Field(description="Whether the factor alone would have gone beyond these bounds.")


class ScaleAnswer(BaseModel):
    scale_factor: float
    scaled: list[ScaledDeployment]
    stands_until: str | None = Field(description="From then on the platform's advice decides again; null: never.")


@router.post("/scale")
async def scale(body: ScaleRequest, request: Request, services: ServicesOf) -> ScaleAnswer:
    """Multiplies the number of chat replicas, within `advice.min_replicas` and `advice.max_replicas`. 409 where Serve
    was told a fixed number, or the API runs without Serve."""
    advice = services.config.advice
    until = services.clock.now() + advice.ahead_s if advice.apply else None
    scaled = await services.scaling.scale(body.scale_factor, everything=body.apply_to_all, until=until)
    identity: Identity = request.scope.get("state", {}).get("identity", LOCAL)
    logger.info("scaled who=%s factor=%g to=%s", identity.who, body.scale_factor, scaled)
    return ScaleAnswer(
        scale_factor=body.scale_factor,
        scaled=[ScaledDeployment(**one.to_json()) for one in scaled],
        stands_until=_told(until),
    )


def _told(until: float | None) -> Any:
    return None if until is None else datetime.fromtimestamp(until, UTC).isoformat(timespec="milliseconds")
