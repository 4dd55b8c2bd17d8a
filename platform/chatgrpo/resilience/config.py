"""Settings of what happens when a model fails or too much is asked for. Imports nothing of the platform's settings,
which include these."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

_FROZEN = ConfigDict(extra="forbid", frozen=True)


class BreakerConfig(BaseModel):
    """When an upstream is left alone, and how it is tried again."""

    model_config = _FROZEN

    window_s: float = Field(30.0, gt=0, description="Seconds over which the error rate of an upstream is taken.")
    min_calls: int = Field(10, ge=1, description="Calls in the window below which nothing is concluded.")
    error_rate: float = Field(0.5, gt=0, le=1, description="Share of failed calls at which the circuit opens.")
    open_s: float = Field(5.0, gt=0, description="Seconds without calls after the first opening; then twice as long.")
    max_open_s: float = Field(120.0, gt=0, description="Longest time without calls.")
    num_probes: int = Field(2, ge=1, description="Good calls in a row, one at a time, that close the circuit.")
    probe_timeout_s: float = Field(60.0, gt=0, description="After so long an unanswered probe is given up.")


class RetryConfig(BaseModel):
    """Calls are repeated only while nothing of their answer was sent."""

    model_config = _FROZEN

    max_attempts: int = Field(3, ge=1, le=10, description="Calls in all for one request; 1: never repeated.")
    base_s: float = Field(0.1, ge=0, description="The wait is drawn from 0 to this, doubled with each attempt.")
    max_s: float = Field(5.0, ge=0, description="Longest wait.")
    budget: float = Field(0.1, ge=0, le=1, description="Repeats allowed for each call, over all requests.")
    reserve: float = Field(10.0, ge=0, description="Repeats that may be saved up, and are there from the start.")


class LadderConfig(BaseModel):
    """What is given up first as replies pile up. Shares are of `max_replies`."""

    model_config = _FROZEN

    max_replies: int = Field(512, ge=1, description="Replies being written at once for one replica of the API.")
    shed_training_at: float = Field(0.7, gt=0, le=1, description="From here on training-side requests get 503.")
    degrade_at: float = Field(0.9, gt=0, le=1, description="From here on: stale answers, or those of smaller models.")


class ResilienceConfig(BaseModel):
    """The section `gateway.resilience` of `configs/platform.yaml`."""

    model_config = _FROZEN

    breaker: BreakerConfig = Field(default_factory=BreakerConfig, description="One circuit a model.")
    retry: RetryConfig = Field(default_factory=RetryConfig, description="Failed calls to a model, made again.")
    ladder: LadderConfig = Field(default_factory=LadderConfig, description="What is shed under load, in order.")
    first_piece_timeout_s: float = Field(
        300.0, gt=0, description="Longest wait for the begin of a reply, loading its model included."
    )
    piece_timeout_s: float = Field(
        120.0, gt=0, description="Longest silence within a reply that has begun; then it ends with an error."
    )
    smaller_models: dict[str, str] = Field(
        default_factory=dict, description="Model that answers for another one that fails or under load, by its name."
    )
