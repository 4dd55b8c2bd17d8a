"""Where a step's groups come from: the learner's own engine, or workers beside it. The loop does not know which.

own engine       generate, then learn; the update reuses the rollout's activations
rollout workers  they play ahead as far as `max_staleness` lets them, see `rollouts.dispatch`
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from chatgrpo.environments.base import TaskSource
from chatgrpo.rewards.pool import RewardPool
from chatgrpo.rollouts.collector import collect
from chatgrpo.rollouts.cursor import DataCursor
from chatgrpo.rollouts.dispatch import Rules
from chatgrpo.rollouts.episode import Group
from chatgrpo.rollouts.feed import Feed, Served
from chatgrpo.rollouts.fleet import Fleet
from chatgrpo.rollouts.params import RolloutParams, Tokens
from chatgrpo.rollouts.sampling import decide
from chatgrpo.rollouts.stats import RolloutStats
from chatgrpo.rollouts.worker import Order, Weights
from chatgrpo.training import ranks
from chatgrpo.training.config import TrainConfig
from chatgrpo.training.optimization import Optimization
from chatgrpo.training.policy import Policy
from chatgrpo.training.rollout_engine import RolloutEngine
from chatgrpo.training.rollout_sampler import weights_of


@dataclass(slots=True, kw_only=True)
class Collected:
    """One rank's groups for one step. `figures`: sums over its groups and events, which add up over ranks; a name that
    ends in `_max` is a maximum."""

    groups: list[Group]
    stats: RolloutStats
    rewards: dict[str, float] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)


class Rollouts(Protocol):
    def begin(self, step: int) -> None:
        """Before the first step, with the weights of version `step`."""
        ...

    def collect(self, step: int) -> Collected:
        """This rank's groups for a step; blocks until they are there."""
        ...

    def weights_changed(self, step: int) -> None:
        """The weights are those of version `step` now. All ranks call it together."""
        ...

    def state(self) -> dict[str, Any]:
        """JSON-ready: the data cursor, and under `orders` what was drawn and not yet trained on."""
        ...

    def close(self) -> None: ...


class OwnRollouts:
    """Sampling and data order follow from seed and step, so a resumed run is equal to the bit."""

    def __init__(
        self,
        config: TrainConfig,
        *,
        engine: RolloutEngine,
        tokens: Tokens,
        tasks: TaskSource,
        rewards: RewardPool,
        cursor: DataCursor,
        policy: Policy,
        optimization: Optimization,
    ) -> None:
        self._config, self._engine, self._tokens, self._tasks = config, engine, tokens, tasks
        self._rewards, self._cursor, self._policy, self._optimization = rewards, cursor, policy, optimization
        self._params = RolloutParams.from_config(config)

    def begin(self, step: int) -> None:
        pass

    def collect(self, step: int) -> Collected:
        """With dynamic sampling: rounds of new tasks in place of useless groups."""
        config, wanted = self._config, self._config.prompts_per_step // ranks.world_size()
        played: list[Group] = []
        stats = RolloutStats()
        missing, round_index = wanted, 0
        with self._optimization.whole_weights(), self._policy.autocast(), self._engine.recording(self._policy.tape):
            while True:
                collected = collect(
                    self._engine,
                    self._tokens,
                    self._tasks,
                    [self._tasks.task(i) for i in self._cursor.next(missing)],
                    self._params,
                    rewards=self._rewards,
                    seed=config.seed,
                    step=step,
                    round=round_index,
                )
                played += collected.groups
                stats = stats + collected.stats
                if not config.dynamic_sampling:
                    return Collected(groups=played, stats=stats, rewards=self._rewards.take_metrics())
                decision = decide(played, wanted=wanted, round=round_index, max_rounds=config.max_resample_rounds)
                if decision.done:
                    return Collected(groups=list(decision.keep), stats=stats, rewards=self._rewards.take_metrics())
                missing, round_index = decision.resample, round_index + 1

    def weights_changed(self, step: int) -> None:
        pass

    def state(self) -> dict[str, Any]:
        return self._cursor.state_dict()

    def close(self) -> None:
        pass


class FleetRollouts:
    """Every rank has workers of its own and draws its own tasks. A group's id is its place in the stream of tasks."""

    def __init__(
        self,
        config: TrainConfig,
        fleet: Fleet,
        *,
        tasks: TaskSource,
        cursor: DataCursor,
        policy: Policy,
        optimization: Optimization,
        total_steps: int,
        orders: Sequence[Order] = (),
    ) -> None:
        wanted = config.prompts_per_step // ranks.world_size()
        self._config, self._tasks, self._cursor = config, tasks, cursor
        self._policy, self._optimization, self._orders = policy, optimization, orders
        self._feed = Feed(
            fleet,
            Rules(
                wanted=wanted,
                max_staleness=config.max_staleness,
                total_steps=total_steps,
                max_set_aside=config.max_resample_rounds * wanted if config.dynamic_sampling else 0,
            ),
            num_workers=config.num_rollout_workers,
            capacity=max(1, config.rollout_batch_size // config.num_generations),
            draw=self._draw,
            max_restarts=config.rollout_restarts,
            start_timeout_s=config.rollout_start_timeout_s,
            name=f"r{ranks.rank()}w",
        )

    def begin(self, step: int) -> None:
        self._feed.start(self._weights(step), step=step, orders=self._orders)

    def collect(self, step: int) -> Collected:
        began = time.monotonic()
        served = self._feed.take(step)
        served.stats.seconds = time.monotonic() - began
        figures = _figures(served, step)
        assert figures["staleness_max"] <= self._config.max_staleness, figures
        return Collected(groups=served.groups, stats=served.stats, rewards=served.rewards, figures=figures)

    def weights_changed(self, step: int) -> None:
        self._feed.publish(self._weights(step))

    def state(self) -> dict[str, Any]:
        cursor, orders = self._feed.snapshot(self._cursor.state_dict)
        return {**cursor, "orders": [[o.number, o.group_id, o.task_index] for o in orders]}

    def close(self) -> None:
        self._feed.close()

    def _draw(self) -> Order:
        place = self._cursor.place
        (index,) = self._cursor.next(1)
        return Order(number=place, group_id=f"{place}-{self._tasks.task(index).task_id}", task_index=index)

    def _weights(self, step: int) -> Weights:
        with self._optimization.whole_weights():
            return weights_of(self._policy, step)


def orders_of(states: Sequence[dict[str, Any]], *, rank: int, world_size: int) -> list[Order]:
    """This rank's share of what all ranks of the interrupted run had drawn and not trained on."""
    everything = sorted(tuple(order) for state in states for order in state.get("orders", ()))
    return [Order(number=n, group_id=group_id, task_index=i) for n, group_id, i in everything[rank::world_size]]


def _figures(served: Served, step: int) -> dict[str, float]:
    ages = [
        (step - version, count)
        for group in served.groups
        for episode in group.episodes
        for turn in episode.turns
        for version, count in turn.versions()
    ]
    return {
        "staleness_sum": float(sum(age * count for age, count in ages)),
        "staleness_max": float(max((age for age, _ in ages), default=0)),
        "sampled_tokens": float(sum(count for _, count in ages)),
        "queue_wait_s": served.queue_wait_s,
        "groups": float(len(served.groups)),
        "stale_groups": float(served.stale_groups),
        "replaced_groups": float(served.replaced_groups),
        "reassigned_groups": float(served.reassigned_groups),
        "worker_restarts": float(served.worker_restarts),
        "rollout_workers": float(served.num_workers),
    }


def over_ranks(mine: dict[str, float]) -> dict[str, float]:
    """What people read, over the figures of all ranks. Nothing for the learner's own engine."""
    merged: dict[str, float] = {}
    for figures in ranks.gather(mine):
        for name, value in figures.items():
            old = merged.get(name, 0.0)
            merged[name] = max(old, value) if name.endswith("_max") else old + value
    if not merged:
        return {}
    tokens, groups = merged.pop("sampled_tokens"), merged.pop("groups")
    return {
        "staleness_mean": merged.pop("staleness_sum") / max(1.0, tokens),
        "staleness_max": merged.pop("staleness_max"),
        "rollout/queue_wait_s": merged.pop("queue_wait_s") / max(1.0, groups),
        **{f"rollout/{name}": value for name, value in merged.items()},
    }


MakeFleet = Callable[[TrainConfig], Fleet]
