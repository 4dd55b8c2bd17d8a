"""One generation batch in, new weights out."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chatgrpo.rollouts.episode import Episode
from chatgrpo.training import ranks
from chatgrpo.training.aggregation import token_weights_N
from chatgrpo.training.batch import MicroBatch, Row, pack, split
from chatgrpo.training.config import TrainConfig
from chatgrpo.training.loss_metrics import merge_metrics, summary
from chatgrpo.training.losses import policy_loss
from chatgrpo.training.optimization import Optimization, learning_rate
from chatgrpo.training.policy import Policy

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What one call of `Learner.update` did; `metrics` are means over all ranks. `weights_changed`: False where there
    was nothing to learn on any rank."""

    metrics: dict[str, float]
    weights_changed: bool
    num_rows_trained: int
    num_rows_skipped: int
    num_nonfinite_rows: int
    skipped_steps: int


class Learner:
    """Takes groups of episodes with their advantages and makes `num_iterations` optimizer steps on them. `turn`: within
    it nobody else computes in this process."""

    def __init__(
        self,
        config: TrainConfig,
        policy: Policy,
        optimization: Optimization,
        *,
        total_updates: int,
        turn: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self._config = config
        self._policy = policy
        self._optimization = optimization
        self._total_updates = total_updates
        self._micro_batch_tokens = config.micro_batch_tokens
        self._turn = turn
        self._stepped = False
        self.num_updates = 0
        if config.beta:
            policy.keep_reference()

    def update(self, groups: Sequence[Sequence[Episode]], advantages: Sequence[Sequence[float]]) -> Update:
        """All ranks call it together, each with its own groups (also with none).

        When memory runs out before the optimizer's first step, the gradients so far are thrown away and the update
        starts anew with micro-batches of half the size, which stay that small. Raises torch.OutOfMemoryError when that
        cannot help: with several ranks, which must agree, and with one row a micro-batch."""
        while True:
            try:
                with self._turn():
                    return self._update(groups, advantages)
            except torch.OutOfMemoryError:
                if ranks.world_size() > 1 or self._stepped or not self._shrink(groups):
                    raise

    def _shrink(self, groups: Sequence[Sequence[Episode]]) -> bool:
        """Halves the micro-batches; False when no row would be parted from another."""
        longest = max((len(e.token_ids) for group in groups for e in group), default=0)
        if self._micro_batch_tokens <= longest:
            return False
        for _, parameter in self._policy.trainable():
            parameter.grad = None
        self._policy.release_activations()
        logger.warning(
            "out of memory with micro-batches of %d tokens, trying %d",
            self._micro_batch_tokens,
            self._micro_batch_tokens // 2,
        )
        self._micro_batch_tokens //= 2
        return True

    def _update(self, groups: Sequence[Sequence[Episode]], advantages: Sequence[Sequence[float]]) -> Update:
        config = self._config
        self._stepped = False
        rows = _rows(groups, advantages)
        counted = [r for group in rows for r in group if not self._is_masked(r)]
        num_rows, num_tokens = ranks.sum_over_ranks(
            [float(sum(len(group) for group in rows)), float(sum(r.episode.num_sampled for r in counted))]
        )
        trained = [[r for r in group if self._teaches(r)] for group in rows]
        batches = [pack(part) for part in split([group for group in trained if group], self._micro_batch_tokens)]
        # Sharded weights are gathered in every forward: all ranks must make equally many.
        rounds = int(ranks.max_over_ranks(len(batches)))
        idle = rounds - len(batches)
        stale: list[Tensor | None] = [None] * len(batches)
        dropped: set[int] = set()
        metrics: dict[str, float] = {}
        skipped_steps = 0
        if rounds:
            self._policy.update_begins()
        else:
            # Nothing to learn anywhere: the schedule goes on, the weights and the optimizer stay as they are.
            self.num_updates += config.num_iterations
            # The activations would serve nobody: the next rollout says something else.
            self._policy.forget_activations()
        for iteration in range(config.num_iterations if rounds else 0):
            parts: list[dict[str, Tensor]] = []
            for index, batch in enumerate(batches):
                is_last = index == rounds - 1
                weights = self._weights(batch, num_rows, num_tokens)
                part, logprobs = self._accumulate(batch, weights, stale[index], dropped, is_last=is_last)
                parts.append(part)
                if iteration == 0 and config.num_iterations > 1:
                    stale[index] = logprobs
            for i in range(idle):
                self._accumulate_nothing(is_last=i == idle - 1)
            rate = learning_rate(config, self.num_updates, self._total_updates)
            self._stepped = True
            norm = self._optimization.step(rate)
            self._policy.weights_changed()
            self.num_updates += 1
            skipped_steps += not math.isfinite(norm)
            metrics = _over_ranks(parts) | {"grad_norm": norm, "learning_rate": rate}
        num_trained = sum(len(group) for group in trained)
        all_trained, all_dropped = ranks.sum_over_ranks([float(num_trained), float(len(dropped))])
        return Update(
            metrics=metrics,
            weights_changed=rounds > 0,
            num_rows_trained=int(all_trained),
            num_rows_skipped=int(num_rows - all_trained),
            num_nonfinite_rows=int(all_dropped),
            skipped_steps=skipped_steps,
        )

    def _teaches(self, row: Row) -> bool:
        """A row with zero advantage has zero gradient, unless a KL or an entropy term pulls on it as well."""
        if self._is_masked(row) or row.episode.num_sampled == 0:
            return False
        return row.advantage != 0 or self._config.beta > 0 or self._config.entropy_coef > 0

    def _is_masked(self, row: Row) -> bool:
        return self._config.mask_truncated_completions and row.episode.truncated

    def _weights(self, batch: MicroBatch, num_rows: float, num_tokens: float) -> Tensor:
        return token_weights_N(
            self._config.loss_type,
            batch.row_N,
            batch.lengths_R,
            num_rows_global=int(num_rows),
            num_tokens_global=int(num_tokens),
            max_completion_length=self._config.max_completion_length,
        )

    def _accumulate(
        self, batch: MicroBatch, weights_N: Tensor, old_logprobs_N: Tensor | None, dropped: set[int], *, is_last: bool
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Forward and backward of one micro-batch. -> its metrics and its log-probs before the update."""
        config = self._config
        logprobs_N, entropy_N = self._optimization.module(batch, config.temperature)
        reference_N = self._policy.reference_logprobs(batch, config.temperature) if config.beta else None
        device = logprobs_N.device
        output = policy_loss(
            config,
            logprobs_N=logprobs_N,
            row_N=batch.row_N.to(device),
            advantages_N=batch.advantages_N.to(device),
            weights_N=weights_N.to(device),
            old_logprobs_N=old_logprobs_N,
            sampler_logprobs_N=batch.sampler_logprobs_N.to(device),
            ref_logprobs_N=reference_N,
            entropy_N=entropy_N if config.entropy_coef else entropy_N.detach(),
        )
        dropped.update(batch.rows[r].index for r in output.nonfinite_rows)
        self._optimization.backward(output.loss, is_last=is_last)
        return dict(output.metrics), logprobs_N.detach()

    def _accumulate_nothing(self, *, is_last: bool) -> None:
        """Joins the other ranks' forward and backward with a batch that adds nothing."""
        episode = Episode(
            token_ids=(0, 0),
            completion_mask=(False, True),
            logprobs=(0.0, 0.0),
            prompt_length=1,
            turns=(),
            messages=(),
            truncated=False,
        )
        batch = pack([[Row(index=0, episode=episode, advantage=0.0)]])
        logprobs_N, _ = self._optimization.module(batch, self._config.temperature)
        if self._config.beta:
            self._policy.reference_logprobs(batch, self._config.temperature)
        self._optimization.backward(logprobs_N.sum() * 0.0, is_last=is_last)


def _rows(groups: Sequence[Sequence[Episode]], advantages: Sequence[Sequence[float]]) -> list[list[Row]]:
    rows: list[list[Row]] = []
    index = 0
    for group, values in zip(groups, advantages, strict=True):
        rows.append([])
        for episode, advantage in zip(group, values, strict=True):
            rows[-1].append(Row(index=index, episode=episode, advantage=advantage))
            index += 1
    return rows


def _over_ranks(parts: list[dict[str, Tensor]]) -> dict[str, float]:
    """Figures of all micro-batches of all ranks."""
    mine = {name: float(value) for name, value in merge_metrics(parts).items()}
    everyone = ranks.gather(mine)
    return summary(merge_metrics({n: torch.tensor(v) for n, v in m.items()} for m in everyone))
