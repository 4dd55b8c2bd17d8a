"""Plays groups of episodes on one engine: a fixed set of them (`collect`), or as they are asked for (`Collector`).

One loop, in the caller's thread, owns the engine and all episode state. Environments and rewards run elsewhere and
report through one queue, so the engine goes on decoding other episodes while a tool works or a judge thinks:

    waiting groups --admit--> starting --prompt--> generating <--delta-- stepping --done--> scoring --> settled
                                   any failure --> a fresh attempt, or the group is dropped

A group's opening requests reach the engine together, so that it prefills their common prompt once.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Self

from chatgrpo.clock import Clock, SystemClock
from chatgrpo.environments.base import Environment, SingleTurn, Step, Task, TaskSource
from chatgrpo.errors import InvalidRequest
from chatgrpo.inference.engine import Engine, FinishReason, GenerationRequest, SamplingParams, TokenEvent
from chatgrpo.messages import Message
from chatgrpo.rewards.pool import RewardPool
from chatgrpo.rewards.rubric import Score, describe
from chatgrpo.rollouts.attempt import Attempt
from chatgrpo.rollouts.episode import Episode, Group
from chatgrpo.rollouts.params import RolloutParams, Tokens, sampling_seed
from chatgrpo.rollouts.stats import RolloutStats
from chatgrpo.rollouts.world import World

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """Groups in the order of their tasks, dropped ones left out; episodes in the order of generation."""

    groups: list[Group]
    stats: RolloutStats


def collect(
    engine: Engine,
    tokens: Tokens,
    source: TaskSource,
    tasks: Sequence[Task],
    params: RolloutParams,
    *,
    rewards: RewardPool,
    seed: int,
    step: int,
    round: int = 0,
    clock: Clock | None = None,
) -> Collected:
    """Plays `num_generations` episodes of every task and judges them; blocks until all are settled.

    Sampling depends on seed, step, round and task id alone, not on batching, ranks or the speed of tools. An episode
    whose environment or reward fails is replayed with a fresh environment; when the retries are used up, a failed
    environment drops the group and a failed reward leaves the episode without reward (it then teaches nothing).
    Raises InvalidRequest for a prompt beyond `max_prompt_length`, or when an environment raises it."""
    group_ids = _group_ids(tasks, step=step, round=round)
    settled: dict[str, Group | None] = {}
    clock = clock or SystemClock()
    collector = Collector(
        engine, tokens, source, params, rewards=rewards, seed=seed, clock=clock, on_settled=settled.__setitem__
    )
    started = clock.monotonic()
    with collector:
        for task, group_id in zip(tasks, group_ids, strict=True):
            collector.play(task, group_id)
        while collector.unsettled:
            collector.turn()
    stats = collector.take_stats()
    stats.seconds = clock.monotonic() - started
    groups = [group for group_id in group_ids if (group := settled[group_id]) is not None]
    return Collected(groups=groups, stats=stats)


def _group_ids(tasks: Sequence[Task], *, step: int, round: int) -> list[str]:
    visits: Counter[str] = Counter()
    ids = []
    for task in tasks:
        suffix = [f"r{round}"] * (round > 0) + [f"v{visits[task.task_id]}"] * (visits[task.task_id] > 0)
        ids.append("-".join([str(step), task.task_id, *suffix]))
        visits[task.task_id] += 1
    return ids


@dataclass(slots=True, kw_only=True)
class _Playing:
    """A group on its way. `live`: attempts that hold a place in the batch."""

    task: Task
    group_id: str
    episodes: dict[int, Episode] = field(default_factory=dict)
    live: dict[int, Attempt] = field(default_factory=dict)


@dataclass(slots=True)
class _Wave:
    """Attempts whose first requests go to the engine together, once all have started or failed."""

    expected: int
    ready: list[Attempt] = field(default_factory=list)


class Collector:
    """Groups go in by `play`, every one comes out once by `on_settled(group_id, group)`: None in place of a group that
    was dropped. Only `tell` may be called from another thread. Use it as a context; it cancels what is unfinished."""

    def __init__(
        self,
        engine: Engine,
        tokens: Tokens,
        source: TaskSource,
        params: RolloutParams,
        *,
        rewards: RewardPool,
        seed: int,
        clock: Clock,
        on_settled: Callable[[str, Group | None], None],
    ) -> None:
        self.engine, self.tokens, self.params = engine, tokens, params
        self.rewards, self.seed, self.clock, self.on_settled = rewards, seed, clock, on_settled
        self.world = World(source, timeout_s=params.environment_timeout_s, max_threads=params.rollout_batch_size)
        self.stats = RolloutStats()
        self.reports: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self.requests: dict[str, Attempt] = {}
        self.groups: dict[int, _Playing] = {}
        self.num_played = 0
        self.in_flight = 0
        self.waiting: deque[list[Attempt]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for request_id in self.requests:
            self.engine.cancel(request_id)
        self.world.close()

    @property
    def unsettled(self) -> int:
        return len(self.groups)

    def play(self, task: Task, group_id: str) -> None:
        index = self.num_played
        self.num_played += 1
        self.groups[index] = _Playing(task=task, group_id=group_id)
        self.waiting.extend(
            [Attempt(group_index=index, generation=g, number=0) for g in chunk]
            for chunk in _chunks(self.params.num_generations, self.params.rollout_batch_size)
        )

    def turn(self, *, wait_s: float | None = None) -> None:
        """Admits, hears what environments and rewards have to say, decodes one token of every running episode. With
        nothing to decode it waits for news, at most `wait_s`."""
        self._admit()
        self._hear(wait=not self.engine.has_work, wait_s=wait_s)
        if self.engine.has_work:
            self._decode()

    def tell(self, act: Callable[[], None]) -> None:
        """Calls `act` in the collector's thread, between two tokens; wakes it if it waits."""
        self.reports.put(act)

    def take_stats(self) -> RolloutStats:
        """Since the last call; `seconds` is left to the caller."""
        taken, self.stats = self.stats, RolloutStats()
        return taken

    # Admission

    def _admit(self) -> None:
        while self.waiting and self.in_flight + len(self.waiting[0]) <= self.params.rollout_batch_size:
            attempts = [a for a in self.waiting.popleft() if a.group_index in self.groups]
            wave = _Wave(expected=len(attempts))
            for attempt in attempts:
                group = self.groups[attempt.group_index]
                group.live[attempt.generation] = attempt
                self.in_flight += 1
                self._when_done(self.world.start(group.task), partial(self._started, attempt, wave))

    def _when_done(self, future: Future[Any], handler: Callable[[Future[Any]], None]) -> None:
        future.add_done_callback(lambda done: self.reports.put(partial(handler, done)))

    def _hear(self, *, wait: bool, wait_s: float | None) -> None:
        """Handles all reports that are there; with `wait`, at least one. Every call has a deadline, so one comes."""
        if wait:
            began = self.clock.monotonic()
            news = self._next_report(wait_s)
            if news is not None:
                news()
            if self.groups:
                self.stats.wait_s += self.clock.monotonic() - began
        while (report := self._next_report(0)) is not None:
            report()

    def _next_report(self, wait_s: float | None) -> Callable[[], None] | None:
        try:
            return self.reports.get(block=wait_s != 0, timeout=wait_s)
        except Empty:
            return None

    # Environment: start

    def _started(self, attempt: Attempt, wave: _Wave, future: Future[tuple[Environment, tuple[Message, ...]]]) -> None:
        if not self._is_live(attempt):
            wave.expected -= 1
        elif (error := _error(future)) is not None:
            wave.expected -= 1
            self._environment_failed(attempt, error)
        else:
            attempt.environment, messages = future.result()
            attempt.open(messages, self._prompt_ids(attempt, wave, messages))
            wave.ready.append(attempt)
        if len(wave.ready) == wave.expected:
            for ready in sorted(wave.ready, key=lambda a: a.generation):
                if self._is_live(ready):
                    self._ask(ready)

    def _prompt_ids(self, attempt: Attempt, wave: _Wave, messages: Sequence[Message]) -> Sequence[int]:
        for other in wave.ready:
            if other.messages == list(messages):
                return other.token_ids
        ids = self.tokens.prompt_ids(messages)
        if len(ids) > self.params.max_prompt_length:
            raise InvalidRequest(
                f"the opening prompt of task {self.groups[attempt.group_index].task.task_id} has {len(ids)} tokens, "
                f"max_prompt_length is {self.params.max_prompt_length}: raise it, or shorten or remove the task",
                "max_prompt_length",
            )
        return ids

    # Generation

    def _ask(self, attempt: Attempt) -> None:
        params, group = self.params, self.groups[attempt.group_index]
        turn = len(attempt.turns)
        room = params.max_episode_length - len(attempt.token_ids)
        request = GenerationRequest(
            request_id=f"{group.group_id}/{attempt.generation}/{attempt.number}/{turn}",
            prompt_ids=tuple(attempt.token_ids),
            keep=not isinstance(attempt.environment, SingleTurn),
            continues=attempt.request_id,
            params=SamplingParams(
                max_tokens=min(params.max_completion_length, room),
                temperature=params.temperature,
                top_p=params.top_p,
                top_k=params.top_k,
                stop=params.stop,
                seed=sampling_seed(
                    self.seed, group.group_id, generation=attempt.generation, attempt=attempt.number, turn=turn
                ),
            ),
        )
        attempt.begin_reply(self.engine.weight_version)
        attempt.request_id = request.request_id
        self.engine.add(request)
        self.requests[request.request_id] = attempt

    def _decode(self) -> None:
        began = self.clock.monotonic()
        version = self.engine.weight_version
        events = self.engine.step()
        self.stats.generation_s += self.clock.monotonic() - began
        for event in events:
            self._sampled(event, version)

    def _sampled(self, event: TokenEvent, weight_version: int) -> None:
        attempt = self.requests.get(event.request_id)
        if attempt is None:  # cancelled a moment ago
            return
        attempt.sampled(event.token_id, event.logprob, weight_version)
        if event.finish_reason is None:
            return
        del self.requests[event.request_id]
        text = self.tokens.decode(attempt.reply_ids)
        attempt.end_reply(text, event.finish_reason)
        assert attempt.environment is not None  # it started, or there would be no request
        # A stop string ends a reply just as EOS does, but leaves the turn open.
        closed = event.finish_reason is FinishReason.STOP and not any(s in text for s in self.params.stop)
        self._when_done(self.world.step(attempt.environment, text), partial(self._stepped, attempt, closed))

    # Environment: step

    def _stepped(self, attempt: Attempt, closed: bool, future: Future[Step]) -> None:
        if not self._is_live(attempt):
            return
        if (error := _error(future)) is not None:
            self._environment_failed(attempt, error)
            return
        step = future.result()
        attempt.hear(step)
        if step.done:
            self._score(attempt)
            return
        delta = self.tokens.continuation_ids(step.messages, closed=closed)
        if len(attempt.token_ids) + len(delta) >= self.params.max_episode_length:
            attempt.truncated = True
            self._score(attempt)
            return
        attempt.go_on(delta)
        self._ask(attempt)

    def _environment_failed(self, attempt: Attempt, error: BaseException) -> None:
        if isinstance(error, InvalidRequest):
            raise error
        if isinstance(error, TimeoutError):
            self.stats.environment_timeouts += 1
        else:
            self.stats.environment_failures += 1
        self._note("environment_failed", attempt, describe(error))
        self._leave(attempt)
        if not self._retry(attempt):
            self._drop(attempt.group_index)

    # Reward

    def _score(self, attempt: Attempt) -> None:
        self._leave(attempt)
        episode = attempt.episode()
        future = self.rewards.submit(self.groups[attempt.group_index].task, episode)
        self._when_done(future, partial(self._scored, attempt, episode))

    def _scored(self, attempt: Attempt, episode: Episode, future: Future[Score]) -> None:
        group, score = self.groups.get(attempt.group_index), future.result()
        if group is None:  # dropped meanwhile
            return
        info = dict(episode.info)
        if score.failures:
            self.stats.reward_failures += 1
            self._note("reward_failed", attempt, "; ".join(f"{k}: {v}" for k, v in score.failures.items()))
            if self._retry(attempt):
                return
            self.stats.dropped_episodes += 1
            info["reward_failures"] = dict(score.failures)
        group.episodes[attempt.generation] = replace(
            episode, reward=score.total, breakdown=dict(score.breakdown), info=info
        )
        if len(group.episodes) == self.params.num_generations:
            self._settle(attempt.group_index)

    # Bookkeeping

    def _is_live(self, attempt: Attempt) -> bool:
        group = self.groups.get(attempt.group_index)
        return group is not None and group.live.get(attempt.generation) is attempt

    def _leave(self, attempt: Attempt) -> None:
        del self.groups[attempt.group_index].live[attempt.generation]
        self.in_flight -= 1
        if attempt.request_id is not None:
            self.engine.cancel(attempt.request_id)  # what was kept of it

    def _retry(self, attempt: Attempt) -> bool:
        if attempt.number >= self.params.max_episode_retries:
            return False
        self.stats.retried_episodes += 1
        again = Attempt(group_index=attempt.group_index, generation=attempt.generation, number=attempt.number + 1)
        self.waiting.appendleft([again])
        return True

    def _drop(self, index: int) -> None:
        for attempt in list(self.groups[index].live.values()):
            self._leave(attempt)
        for request_id in [r for r, a in self.requests.items() if a.group_index == index]:
            self.engine.cancel(request_id)
            del self.requests[request_id]
        self.stats.dropped_groups += 1
        self.on_settled(self.groups.pop(index).group_id, None)

    def _settle(self, index: int) -> None:
        playing = self.groups.pop(index)
        episodes = tuple(playing.episodes[g] for g in sorted(playing.episodes))
        if all(e.reward is None and "reward_failures" in e.info for e in episodes):
            self.stats.dropped_groups += 1
            self.on_settled(playing.group_id, None)
            return
        self._count(episodes)
        self.on_settled(playing.group_id, Group(group_id=playing.group_id, task=playing.task, episodes=episodes))

    def _note(self, what: str, attempt: Attempt, cause: str) -> None:
        group_id = self.groups[attempt.group_index].group_id
        self.stats.failures[f"{what}: {cause}"] += 1
        limit = self.params.max_episode_retries
        logger.warning("%s group=%s retry=%d/%d cause=%s", what, group_id, attempt.number, limit, cause)

    def _count(self, episodes: Sequence[Episode]) -> None:
        self.stats.num_groups += 1
        self.stats.num_episodes += len(episodes)
        self.stats.num_turns += sum(len(e.turns) for e in episodes)
        self.stats.num_truncated += sum(e.truncated for e in episodes)
        self.stats.prompt_tokens += sum(e.prompt_length for e in episodes)
        self.stats.sampled_tokens += sum(e.num_sampled for e in episodes)


def _chunks(count: int, size: int) -> list[range]:
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def _error(future: Future[Any]) -> BaseException | None:
    return TimeoutError("cancelled before it began") if future.cancelled() else future.exception()
