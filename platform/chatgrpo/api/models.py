"""Which models can be chatted with: the default one, the built-in ones, what the caller's finished jobs published."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from chatgrpo.api.errors import RESPONSES
from chatgrpo.api.identity import Owner
from chatgrpo.api.services import Services, ServicesOf
from chatgrpo.errors import Conflict, InvalidRequest, NotFound
from chatgrpo.inference import models as registry
from chatgrpo.jobs.job import JobState

router = APIRouter(prefix="/api/v2/models", tags=["models"], responses=RESPONSES)


@router.get("")
async def list_models(services: ServicesOf, owner: Owner) -> dict[str, Any]:
    """Names that `model` in a chat request may have. A job's id is one of them once the job has succeeded."""
    published = await services.jobs.list(owner=owner, state=JobState.SUCCEEDED, limit=1000)
    return {"models": [*_base_models(services), *map(_job_model, published)]}


async def require_model(services: Services, name: str, *, owner: str) -> str:
    """The version of what is published under the name: it changes whenever something else is. Raises NotFound for a
    name that no model has (or another owner's job has), Conflict for a job that has not published a model. Folders and
    hub ids are deliberately not served by name: a request must not make the platform load arbitrary files."""
    if name == services.config.default_model or name in registry.BUILT_IN:
        return name
    try:
        job = await services.jobs.get(name, owner=owner)
    except NotFound:
        raise NotFound(f"model {name!r} does not exist; GET /api/v2/models lists what can be chatted with") from None
    if job["status"] != JobState.SUCCEEDED:
        raise Conflict(f"job {name} is {job['status']}: its model can be chatted with once the job has succeeded")
    return "@".join([name, *(str(job.get(field)) for field in ("attempt", "published_step", "ended_at"))])


def _base_models(services: Services) -> list[dict[str, Any]]:
    default = services.config.default_model
    names = dict.fromkeys([default, *registry.BUILT_IN])
    return [_base_model(name, is_default=name == default) for name in names]


def _base_model(name: str, *, is_default: bool) -> dict[str, Any]:
    model: dict[str, Any] = {"id": name, "source": "base", "default": is_default, "available": True}
    model["description"] = registry.BUILT_IN.get(name, "the platform's default model")
    if name in registry.BUILT_IN:
        try:
            registry.find(name)
        except InvalidRequest as error:
            model |= {"available": False, "reason": error.message}
    return model


def _job_model(job: dict[str, Any]) -> dict[str, Any]:
    name = job.get("experiment_name", "")
    return {
        "id": job["job_id"],
        "source": "job",
        "default": False,
        "available": True,
        "description": f"trained by job {job['job_id']} ({name})",
        "created_at": job.get("created_at"),
    }
