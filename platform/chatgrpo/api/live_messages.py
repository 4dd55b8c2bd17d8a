"""What may be said on the live socket."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

# A reader of more than this wants GET /api/v2/jobs.
MAX_TOPICS_A_READER = 50

Topic = Annotated[str, Field(min_length=1, max_length=132)]


class _Question(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Ping(_Question):
    type: Literal["ping"]


class Metrics(_Question):
    type: Literal["metrics"]


class Health(_Question):
    type: Literal["health"]


class JobStatus(_Question):
    type: Literal["job_status"]
    job_id: str = Field(min_length=1, max_length=128)


class Subscribe(_Question):
    type: Literal["subscribe"]
    topics: list[Topic] = Field(min_length=1, max_length=MAX_TOPICS_A_READER)
    last_event_id: str | None = Field(None, max_length=64)


class Unsubscribe(_Question):
    type: Literal["unsubscribe"]
    topics: list[Topic] = Field(min_length=1, max_length=MAX_TOPICS_A_READER)


Question = Ping | Metrics | Health | JobStatus | Subscribe | Unsubscribe

questions: TypeAdapter[Question] = TypeAdapter(Annotated[Question, Field(discriminator="type")])
