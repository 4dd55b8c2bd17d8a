"""A sweep as data: the configuration that every trial shares, what differs, and how to look. Free of torch and ray."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from chatgrpo.config import Strict
from chatgrpo.errors import InvalidRequest
from chatgrpo.training.cohort_rules import check_cohort
from chatgrpo.training.config import TrainConfig


class _Range(Strict):
    """Values between two bounds."""

    type: str
    low: float
    high: float

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low: {self.low} must be below high ({self.high})")
        return self

    def examples(self) -> list[Any]:
        """Values that bound the dimension: what is wrong with any is likely wrong with one of these."""
        return [self.low, self.high]


class Uniform(_Range):
    """Any number from `low` to `high`."""

    type: Literal["uniform"] = "uniform"
    low: float = Field(description="Smallest value.")
    high: float = Field(description="Largest value.")


class LogUniform(Uniform):
    """Any number from `low` to `high`, each order of magnitude equally likely: for learning rates."""

    type: Literal["loguniform"] = "loguniform"  # type: ignore[assignment]
    low: float = Field(gt=0, description="Smallest value.")


class RandInt(_Range):
    """Any whole number from `low` to `high`, both included."""

    type: Literal["randint"] = "randint"
    low: int = Field(description="Smallest value.")
    high: int = Field(description="Largest value.")


class Choice(Strict):
    """One of `values`."""

    type: Literal["choice"] = "choice"
    values: list[Any] = Field(min_length=2, description="Two or more values of the field.")

    def examples(self) -> list[Any]:
        return list(self.values)


Dimension = Annotated[Uniform | LogUniform | RandInt | Choice, Field(discriminator="type")]


class Asha(Strict):
    """Stops trials early that do worse than others did after as many steps (ASHA, arXiv:1810.05934)."""

    type: Literal["asha"] = "asha"
    grace_steps: int = Field(1, ge=1, description="Steps before a trial may be stopped.")
    reduction_factor: float = Field(3.0, gt=1, description="One in so many trials passes each rung.")
    max_steps: int | None = Field(None, ge=1, description="Steps of a whole trial; empty: train.max_steps.")


class Pbt(Strict):
    """Population based training (arXiv:1711.09846): all trials train at once; now and then the worst take over the
    policy of one of the best and go on with changed values."""

    type: Literal["pbt"] = "pbt"
    interval_steps: int = Field(10, ge=1, description="Steps from one comparison with the other trials to the next.")
    quantile: float = Field(
        0.25, gt=0, le=0.5, description="Share of the trials that counts as worst, and as best; at least one each."
    )
    resample_probability: float = Field(
        0.25, ge=0, le=1, description="How often a value is drawn anew; else a number is scaled, a choice moves by one."
    )
    factors: tuple[float, float] = Field((0.8, 1.2), description="What a number is scaled by: one of the two.")

    @model_validator(mode="after")
    def _changes_values(self) -> Self:
        if not 0 < self.factors[0] < 1 < self.factors[1]:
            raise ValueError(f"factors: {list(self.factors)} must be one below and one above 1, e.g. [0.8, 1.2]")
        return self


class Fifo(Strict):
    """Every trial runs to its end."""

    type: Literal["none"] = "none"


SchedulerConfig = Annotated[Asha | Pbt | Fifo, Field(discriminator="type")]


class SweepConfig(Strict):
    """Everything a sweep needs."""

    experiment_name: str = Field(
        "sweep", min_length=1, max_length=128, pattern=r"^[\w][\w .\-]*$", description="For people."
    )
    train: TrainConfig = Field(description="What all trials share; in a file also the path of a training file.")
    space: dict[str, Dimension] = Field(
        min_length=1, description="Field of `train` (dotted, as --set takes it) -> the values to try."
    )
    metric: str = Field(
        "eval_reward", min_length=1, description="What a trial is judged by: any figure that runs report."
    )
    mode: Literal["max", "min"] = Field("max", description="Whether more or less of it is better.")
    num_samples: int = Field(8, ge=1, le=10_000, description="Trials.")
    max_concurrent: int = Field(
        2, ge=1, description="Trials at once; the sweep waits until there is room for all of them."
    )
    scheduler: SchedulerConfig = Field(
        default_factory=Asha, description="Which trials are stopped early (asha), or take over from others (pbt)."
    )
    search: Literal["optuna", "random"] | None = Field(
        None,
        description="Where the next trial looks: TPE over what is known, or anywhere. Empty: optuna, but random for "
        "pbt, whose trials all start at once.",
    )
    seed: int = Field(0, ge=0, description="Seeds the search; trials keep train.seed, so that they compare.")
    priority: int = Field(1, ge=0, le=100, description="Of the sweep in the queue; higher starts earlier.")
    max_runtime_hours: float | None = Field(None, gt=0, description="The sweep starts no trial after this long.")
    share_base: bool = Field(
        False,
        description="Trials train LoRA adapters together in one worker: one copy of the base's weights, one engine. "
        "Needs train.lora, search: random and scheduler: {type: none}.",
    )

    @model_validator(mode="after")
    def _metric_is_reported(self) -> Self:
        if self.metric.startswith("eval_"):
            if not self.train.num_eval_prompts:
                raise ValueError(f"metric: {self.metric} needs train.num_eval_prompts above 0")
            if not isinstance(self.scheduler, Fifo) and not self.train.eval_steps:
                raise ValueError(
                    f"train.eval_steps: {self.scheduler.type} compares {self.metric} during training; say every how "
                    "many steps, or write scheduler: {type: none}"
                )
        if isinstance(self.scheduler, Asha) and not (self.scheduler.max_steps or self.train.max_steps):
            raise ValueError("scheduler.max_steps: give it, or train.max_steps, so that the rungs are known")
        return self

    @model_validator(mode="after")
    def _base_can_be_shared(self) -> Self:
        if not self.share_base:
            return self
        if self.search != "random":
            raise ValueError("search: trials that share a base are drawn at once; write random")
        if not isinstance(self.scheduler, Fifo):
            raise ValueError("scheduler: trials that share a base run to their end; write {type: none}")
        try:
            check_cohort([self.train])
        except InvalidRequest as error:
            raise ValueError(f"train.{error.field}: {error}") from error
        return self

    @model_validator(mode="after")
    def _population_can_train(self) -> Self:
        pbt = self.scheduler
        if not isinstance(pbt, Pbt):
            return self
        if self.search == "optuna":
            raise ValueError("search: pbt draws its trials at once, before anything is known; write random")
        if not 2 <= self.num_samples <= self.max_concurrent:
            raise ValueError(
                f"max_concurrent: the {self.num_samples} trials of pbt train at once, at least 2; write "
                f"{max(2, self.num_samples)}, and fewer resources.cpus_per_worker where room is short"
            )
        if not self.train.save_steps or pbt.interval_steps % self.train.save_steps:
            raise ValueError(
                f"train.save_steps: {self.train.save_steps} must divide scheduler.interval_steps "
                f"({pbt.interval_steps}): pbt hands checkpoints on"
            )
        return self
