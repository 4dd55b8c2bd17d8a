"""One GRPO run from its first question to its exported policy. Free of Ray: a run on one process is a function call.

Step: tasks -> episodes (judged while others are generated) -> advantages -> update -> report. All ranks walk through
it together; what a rank does alone (its tasks, its episodes) follows from seed, step and rank, so a run that resumes
from a checkpoint does what the uninterrupted one would have done.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from chatgrpo.environments.registry import build_source
from chatgrpo.errors import InvalidRequest
from chatgrpo.inference.activation_tape import ActivationTape
from chatgrpo.inference.adapters import adapter_in
from chatgrpo.inference.llama_weights import LlamaWeights
from chatgrpo.inference.loading import load
from chatgrpo.inference.shared_engine import SharedEngine
from chatgrpo.jobs import checkpoints, divergence, early_stopping
from chatgrpo.jobs.divergence import Diverged
from chatgrpo.jobs.run_folder import RunFolder
from chatgrpo.monitoring.tracing import trace_operation
from chatgrpo.rewards.pool import RewardPool
from chatgrpo.rewards.rubric import Rubric
from chatgrpo.rollouts.cursor import DataCursor
from chatgrpo.rollouts.fleet import Fleet, ThreadFleet
from chatgrpo.rollouts.params import RolloutParams
from chatgrpo.rollouts.stats import RolloutStats
from chatgrpo.rollouts.trajectories import append_groups
from chatgrpo.rollouts.worker import Order
from chatgrpo.training import ranks
from chatgrpo.training.allocator import release_freed_memory
from chatgrpo.training.checkpoint import RunState, load_checkpoint, load_weights, save_checkpoint
from chatgrpo.training.config import TrainConfig
from chatgrpo.training.evaluation import Evaluation, evaluate
from chatgrpo.training.export import export_policy
from chatgrpo.training.learner import Learner
from chatgrpo.training.memory_plan import ModelShape, plan
from chatgrpo.training.optimization import Optimization, TorchOptimization
from chatgrpo.training.policy import Policy
from chatgrpo.training.precision import compute_dtype, device_of_rank
from chatgrpo.training.rollout_engine import RolloutEngine, build_engine
from chatgrpo.training.rollout_sampler import build_sampler
from chatgrpo.training.rollouts import FleetRollouts, MakeFleet, OwnRollouts, Rollouts, orders_of, over_ranks
from chatgrpo.training.scoring import score
from chatgrpo.training.step_gauge import StepGauge
from chatgrpo.training.tracking import Trackers

logger = logging.getLogger(__name__)

# (figures, folder of a new checkpoint or None): called by every rank after every step.
Report = Callable[[Mapping[str, float], Path | None], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a run lives. `home` holds caches that runs share, `run_dir` is the run's own folder."""

    run_id: str
    home: Path
    run_dir: Path

    @property
    def models_dir(self) -> Path:
        return self.home / "models"

    @property
    def runs_dir(self) -> Path:
        return self.run_dir.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended. `stopped`: it was asked to pause and left a checkpoint; nothing was exported.
    `reason` says why it ended before `total_steps`, "" if it did not. `published_step`: whose policy was exported."""

    step: int
    total_steps: int
    stopped: bool
    reason: str
    published_step: int | None
    first_evaluation: Evaluation | None
    last_evaluation: Evaluation | None

    def result(self, run_dir: Path) -> dict[str, Any]:
        """What `result.json` holds."""
        return {
            "status": "stopped" if self.stopped else "succeeded",
            "error": None,
            "cause": None,
            "reason": self.reason,
            "step": self.step,
            "total_steps": self.total_steps,
            "published_step": self.published_step,
            "export": None if self.stopped else str(run_dir / "export"),
            "first_evaluation": asdict(self.first_evaluation) if self.first_evaluation else None,
            "last_evaluation": asdict(self.last_evaluation) if self.last_evaluation else None,
        }


class Run:
    """Everything of one run on one rank. `shared`: what it has in common with the other runs of a cohort."""

    def __init__(
        self,
        config: TrainConfig,
        place: Place,
        report: Report,
        *,
        shared: SharedEngine | None = None,
        make_fleet: MakeFleet | None = None,
    ) -> None:
        self.config, self.place, self._report = config, place, report
        self.folder = RunFolder(place.run_dir)
        num_eval = config.num_eval_prompts
        self.tasks = build_source(config.environment, split="train", seed=config.seed, num_eval=num_eval)
        self.held_out = build_source(config.environment, split="eval", seed=config.seed, num_eval=num_eval)
        if len(self.tasks) == 0:
            raise InvalidRequest(
                "the environment has no training task; give more data or fewer held-out", "environment"
            )
        self.rewards = RewardPool(Rubric(config.rewards), timeout_s=config.reward_timeout_s)
        self.params = RolloutParams.from_config(config)
        self.total_steps = config.max_steps or math.ceil(config.num_epochs * len(self.tasks) / config.prompts_per_step)
        device = device_of_rank()
        loaded = (
            shared.base.fork()
            if shared
            else load(config.model, models_dir=place.models_dir, runs_dir=place.runs_dir, device=device)
        )
        self.template = loaded.template
        dtype = compute_dtype(config.dtype, device)
        self.gauge = StepGauge(config, loaded.model, device=device, dtype=dtype)
        # Adapters start from random numbers: the same on every rank and in every attempt.
        torch.manual_seed(config.seed)
        self.policy = _policy(loaded.model, config, dtype, shared.base.weights if shared else None)
        if config.gradient_checkpointing:
            loaded.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.optimization = _optimization(self.policy, config)
        self.learner = Learner(
            config,
            self.policy,
            self.optimization,
            total_updates=self.total_steps * config.num_iterations,
            turn=shared.turn if shared else contextlib.nullcontext,
        )
        self.engine: RolloutEngine = (
            shared.join(place.run_id, adapter_in(self.policy.causal_lm))
            if shared
            else build_engine(config, self.policy, self.template, models_dir=place.models_dir, run_dir=place.run_dir)
        )
        if self.policy.weights is not None:
            planned = plan(config, ModelShape.from_config(self.policy.causal_lm.config.to_dict()))
            logger.info("memory planned at most peak=%.2f GB a worker", planned.peak / 1e9)
        self.cursor = DataCursor(
            num_tasks=len(self.tasks), seed=config.seed, rank=ranks.rank(), world_size=ranks.world_size()
        )
        self.state = RunState()
        self.trackers: Trackers | None = None
        self._make_fleet = make_fleet or self._threads
        self._orders: list[Order] = []
        self.rollouts: Rollouts | None = None

    def resume(self) -> None:
        """Continues from the newest whole checkpoint of the run folder, if there is one."""
        found = checkpoints.latest_valid(self.folder.checkpoints) if ranks.rank() == 0 else None
        path = ranks.gather(found)[0]
        if path is not None:
            self.state = load_checkpoint(path, self.policy, self.optimization)
            self.policy.weights_changed()
            self.cursor.load_state_dict(self.state.cursor_of(ranks.rank(), ranks.world_size()))
            self._orders = orders_of(self.state.cursors, rank=ranks.rank(), world_size=ranks.world_size())
            self.learner.num_updates = self.state.num_updates
            self.engine.weights_changed(self.state.step)
            if self._orders and not self.config.num_rollout_workers:
                logger.warning("resume without rollout workers: %d drawn tasks are not played", len(self._orders))
            logger.info("resume run=%s step=%d checkpoint=%s", self.place.run_id, self.state.step, path.name)

    def train(self) -> Outcome:
        config, state = self.config, self.state
        started, first_step = time.monotonic(), state.step
        if ranks.rank() == 0:
            checkpoints.sweep_partial(self.folder.checkpoints)
            self.trackers = Trackers(
                config,
                run_id=self.place.run_id,
                run_dir=self.place.run_dir,
                home=self.place.home,
                resume_step=state.step or -1,
            )
        self.rollouts = self._rollouts()
        self.rollouts.begin(state.step)
        if not state.evaluations and config.num_eval_prompts:
            self._evaluate({})
        reason, stopped, diverged = "", False, False
        while state.step < self.total_steps and not reason:
            with trace_operation("training.step", component="trainer") as span:
                span.set_attribute("step", state.step + 1)
                metrics = self._step()
            last = state.step == self.total_steps
            if config.num_eval_prompts and (last or (config.eval_steps and state.step % config.eval_steps == 0)):
                metrics |= self._evaluation_metrics()
            verdict = divergence.judge(metrics, config.divergence, step=state.step, strikes=state.strikes)
            state.strikes, diverged = verdict.strikes, bool(verdict.reason)
            reason = verdict.reason or self._reason_to_end(started)
            stop = None if last or reason else self.folder.read_stop()
            stopped = bool(ranks.max_over_ranks(float(stop is not None)))
            elapsed = time.monotonic() - started
            metrics["eta_s"] = elapsed / (state.step - first_step) * (self.total_steps - state.step)
            due = config.save_steps is not None and state.step % config.save_steps == 0 and not last
            best = config.load_best_model_at_end and not last and not reason and self._is_best_yet()
            self._publish(metrics, self._save() if due or best or stopped else None)
            if stopped:
                reason = f"asked to {stop or 'stop'}"
        if reason and not (stopped or diverged) and config.num_eval_prompts and not self._evaluated_now():
            self._evaluate({"eta_s": 0.0})
        with trace_operation("training.publish", component="trainer"):
            published = None if stopped else self._export(reason if diverged else "")
        if published is not None and self.trackers:
            self.trackers.publish(self.place.run_dir / "export", step=published)
        return Outcome(
            step=state.step,
            total_steps=self.total_steps,
            stopped=stopped,
            reason=reason,
            published_step=published,
            first_evaluation=state.evaluations[0][1] if state.evaluations else None,
            last_evaluation=state.evaluations[-1][1] if state.evaluations else None,
        )

    def close(self, *, succeeded: bool) -> None:
        if self.rollouts:
            self.rollouts.close()
        self.rewards.close()
        self.engine.close()
        if self.trackers:
            self.trackers.close(succeeded=succeeded)

    def _rollouts(self) -> Rollouts:
        if not self.config.num_rollout_workers:
            return OwnRollouts(
                self.config,
                engine=self.engine,
                tokens=self.template,
                tasks=self.tasks,
                rewards=self.rewards,
                cursor=self.cursor,
                policy=self.policy,
                optimization=self.optimization,
            )
        return FleetRollouts(
            self.config,
            self._make_fleet(self.config),
            tasks=self.tasks,
            cursor=self.cursor,
            policy=self.policy,
            optimization=self.optimization,
            total_steps=self.total_steps,
            orders=self._orders,
        )

    def _threads(self, config: TrainConfig) -> Fleet:
        """Rollout workers in this process, for a run that is a function call."""
        return ThreadFleet(
            partial(build_sampler, config, models_dir=self.place.models_dir, runs_dir=self.place.runs_dir)
        )

    # One step

    def _step(self) -> dict[str, float]:
        assert self.rollouts is not None
        began = time.monotonic()
        with trace_operation("training.rollout", component="trainer"):
            collected = self.rollouts.collect(self.state.step)
        groups = collected.groups
        generated = time.monotonic()
        scored = score(self.config, groups, self.rewards.rubric.weights)
        with trace_operation("training.update", component="trainer"):
            update = self.learner.update([g.episodes for g in groups], scored.advantages)
        self.state.step += 1
        self.rollouts.weights_changed(self.state.step)
        self.engine.weights_changed(self.state.step, same=not update.weights_changed)
        release_freed_memory()
        updated = time.monotonic()
        stats = sum(ranks.gather(collected.stats), RolloutStats())
        append_groups(self.folder.trajectories(ranks.rank()), groups, step=self.state.step)
        return {
            **stats.metrics(),
            **collected.rewards,
            **over_ranks(collected.figures),
            **scored.metrics,
            **update.metrics,
            "rows_trained": float(update.num_rows_trained),
            "rows_skipped": float(update.num_rows_skipped),
            "rows_nonfinite": float(update.num_nonfinite_rows),
            "steps_skipped": float(update.skipped_steps),
            "weight_version": float(self.engine.weight_version),
            **self.gauge.figures(groups, scored.advantages, step=self.state.step, update_s=updated - generated),
            "time/rollout_s": generated - began,
            "time/update_s": updated - generated,
            "time/step_s": time.monotonic() - began,
        }

    # Reports

    def _evaluate(self, extra: Mapping[str, float]) -> None:
        """An evaluation that belongs to no training step of its own: before the first, after an early end."""
        self._publish({**self._evaluation_metrics(), **extra}, None)

    def _evaluation_metrics(self) -> dict[str, float]:
        with self.optimization.whole_weights(), self.policy.autocast():
            began = time.monotonic()
            result = evaluate(
                self.engine,
                self.template,
                self.held_out,
                self.params,
                self.rewards,
                num_tasks=self.config.num_eval_prompts,
                step=self.state.step,
            )
        self.state.evaluations.append((self.state.step, result))
        return {**result.metrics(), "time/eval_s": time.monotonic() - began}

    def _evaluated_now(self) -> bool:
        return bool(self.state.evaluations) and self.state.evaluations[-1][0] == self.state.step

    def _publish(self, metrics: Mapping[str, float], checkpoint: Path | None) -> None:
        figures = {"total_steps": self.total_steps, **{k: v for k, v in metrics.items() if math.isfinite(v)}}
        if self.trackers:
            self.trackers.log(figures, self.state.step)
        self._report({"step": self.state.step, **figures}, checkpoint)

    # Ends

    def _reason_to_end(self, started: float) -> str:
        """Why the run should end before its last step; the same on every rank."""
        hours = self.config.max_runtime_hours
        late = hours is not None and time.monotonic() - started > hours * 3600
        if ranks.max_over_ranks(float(late)):
            return f"max_runtime_hours ({hours:g}) is over"
        if self.config.early_stopping and self._evaluated_now():
            rewards = [result.reward for _, result in self.state.evaluations]
            return early_stopping.decide(rewards, self.config.early_stopping).reason
        return ""

    def _save(self) -> Path:
        assert self.rollouts is not None
        self.state.cursors = ranks.gather(self.rollouts.state())
        self.state.num_updates = self.learner.num_updates
        latest = {"eval_reward": self.state.evaluations[-1][1].reward} if self._evaluated_now() else {}
        path = save_checkpoint(self.folder.checkpoints, self.state, self.policy, self.optimization, metrics=latest)
        if ranks.rank() == 0:
            checkpoints.retain(
                self.folder.checkpoints,
                self.config.save_total_limit,
                best=self.config.save_best_limit,
                every=self.config.save_keep_every,
            )
        return path

    def _is_best_yet(self) -> bool:
        """Whether this step was evaluated, and no trained policy before it was better."""
        if not self._evaluated_now():
            return False
        rewards = [result.reward for step, result in self.state.evaluations if step > 0]
        return math.isfinite(rewards[-1]) and rewards[-1] >= max(r for r in rewards if math.isfinite(r))

    def _export(self, diverged: str) -> int:
        """Publishes the best policy or the one at hand; returns its step. Raises Diverged when the one at hand is
        broken (`diverged` says how) and there is no other."""
        best = ranks.gather(self._better_checkpoint(broken=bool(diverged)) if ranks.rank() == 0 else None)[0]
        if diverged and best is None:
            raise Diverged(
                f"{diverged}; nothing is published, since no evaluated checkpoint is there: set eval_steps to keep the "
                "best one, lower learning_rate or raise beta"
            )
        if best is not None:
            load_weights(best.path, self.policy, self.optimization)
            logger.info("publish run=%s step=%d metrics=%s", self.place.run_id, best.step, dict(best.metrics))
        with self.optimization.whole_weights():
            if ranks.rank() == 0:
                export_policy(
                    self.policy, self.template, base_model=self.config.model, folder=self.place.run_dir / "export"
                )
        ranks.barrier()
        return self.state.step if best is None else int(best.step)

    def _better_checkpoint(self, *, broken: bool) -> checkpoints.Entry | None:
        """The checkpoint to publish in place of the policy at hand, if there is one."""
        if not (self.config.load_best_model_at_end or broken):
            return None
        best = checkpoints.best_valid(self.folder.checkpoints)
        if best is None or broken or not self._evaluated_now():
            return best
        return None if self.state.evaluations[-1][1].reward >= best.metrics["eval_reward"] else best


def train(config: TrainConfig, place: Place, report: Report, make_fleet: MakeFleet | None = None) -> Outcome:
    """Runs or resumes a run in this process, one of `world_size` ranks. `make_fleet`: where its rollout workers are, if
    it has any; threads of this process by default. Raises PlatformError for a user's mistake."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return carry_out(Run(config, place, report, make_fleet=make_fleet))


def carry_out(run: Run) -> Outcome:
    """From the newest checkpoint, if there is one, to the end."""
    succeeded = False
    try:
        run.resume()
        outcome = run.train()
        succeeded = True
    finally:
        run.close(succeeded=succeeded)
    return outcome


def _policy(model: Any, config: TrainConfig, dtype: torch.dtype, base: LlamaWeights | None) -> Policy:
    policy = Policy(
        model,
        lora=config.lora,
        compute_dtype=dtype,
        # DeepSpeed flattens parameters, and the fast path has no checkpoints inside its forward.
        fused=config.fast_path and config.deepspeed is None and not config.gradient_checkpointing,
        base=base,
    )
    if policy.weights is not None and config.tape_gb:
        max_tokens = int(config.tape_gb * 1e9 / ActivationTape.bytes_per_token(policy.weights))
        policy.tape = ActivationTape(policy.weights, max_tokens=max_tokens)
    return policy


def _optimization(policy: Policy, config: TrainConfig) -> Optimization:
    if config.deepspeed is None:
        return TorchOptimization(policy, config)
    from chatgrpo.training.deepspeed import DeepSpeedOptimization

    return DeepSpeedOptimization(policy, config)
