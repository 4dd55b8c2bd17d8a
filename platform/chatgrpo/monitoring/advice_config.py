"""Settings of advice. Imports nothing of the platform's settings, which include these."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class AdviceConfig(BaseModel):
    """How many replicas and workers the platform thinks it needs, and what its use costs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    apply: bool = Field(False, description="Let Serve scale the chat replicas as advised; else it is only said.")
    ahead_s: float = Field(1800.0, ge=60, le=86_400, description="How far ahead to look, in seconds.")
    replies_a_replica: float = Field(
        16.0, gt=0, description="Replies being written at once that a replica is good for."
    )
    min_replicas: int = Field(1, ge=1, description="Fewest chat replicas, advised or ordered.")
    max_replicas: int = Field(8, ge=1, description="Most chat replicas, advised or ordered; of the API, ordered.")
    slow_p95_s: float = Field(10.0, gt=0, description="A 95th percentile of chat requests above this is too slow.")
    cpu_hour: float = Field(0.05, ge=0, description="Price of a CPU core for an hour.")
    gpu_hour: float = Field(2.0, ge=0, description="Price of a GPU for an hour.")
    currency: str = Field("USD", pattern="^[A-Z]{3}$", description="Of the prices.")
    replica_cpus: float = Field(1.0, ge=0, description="Cores that a chat replica costs.")
    replica_gpus: float = Field(0.0, ge=0, description="GPUs that a chat replica costs.")

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas: {self.min_replicas} is more than max_replicas {self.max_replicas}")
        return self
