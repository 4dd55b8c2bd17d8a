"""Groups of episodes: exact ids, masks over tool holes, retries, limits, order."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from chatgrpo.clock import SystemClock
from chatgrpo.environments.base import Environment, SingleTurn, Step, Task
from chatgrpo.errors import InvalidRequest
from chatgrpo.inference.engine import FinishReason, GenerationRequest
from chatgrpo.messages import Message, tool, user
from chatgrpo.rewards.config import EnvironmentReward, NumericReward, PluginReward
from chatgrpo.rewards.pool import RewardPool
from chatgrpo.rewards.registry import reward
from chatgrpo.rewards.rubric import Rubric
from chatgrpo.rollouts.collector import Collected, Collector, collect
from chatgrpo.rollouts.episode import Group
from chatgrpo.rollouts.params import RolloutParams
from tests.fakes import ByteTokens, FakeEngine

END = ByteTokens.END


@dataclass
class Source:
    """Tasks "q0", "q1" ...; `make` builds the environment."""

    make: Callable[[Task], Environment] = SingleTurn
    inline: bool = False
    made: list[Environment] = field(default_factory=list)

    def __len__(self) -> int:
        return 100

    def task(self, index: int) -> Task:
        return Task(task_id=f"q{index}", messages=(user(f"q{index}"),), answer=str(index))

    def environment(self, task: Task) -> Environment:
        self.made.append(self.make(task))
        return self.made[-1]


@dataclass
class Scripted:
    """Answers replies from a list of steps; an exception in the list is raised."""

    task: Task
    steps: Sequence[Step | Exception]
    heard: list[str] = field(default_factory=list)

    def start(self) -> Sequence[Message]:
        return self.task.messages

    def step(self, reply: str) -> Step:
        self.heard.append(reply)
        step = self.steps[len(self.heard) - 1]
        if isinstance(step, Exception):
            raise step
        return step


def play(
    engine: FakeEngine,
    source: Source,
    *,
    tasks: int = 1,
    rewards: RewardPool | None = None,
    step: int = 3,
    **params: Any,
) -> Collected:
    pool = rewards or RewardPool(Rubric([NumericReward()]), timeout_s=30.0)
    chosen = RolloutParams(**{"num_generations": 2, **params})
    try:
        return collect(
            engine,
            ByteTokens(),
            source,
            [source.task(i) for i in range(tasks)],
            chosen,
            rewards=pool,
            seed=7,
            step=step,
        )
    finally:
        pool.close()


def test_single_turn_group_holds_exact_ids_mask_and_log_probs() -> None:
    result = play(FakeEngine(lambda request: "0"), Source())
    (group,) = result.groups
    assert group.group_id == "3-q0"
    (first, second) = group.episodes
    prompt = (258, *b"q0", END, 259)
    assert first.token_ids == (*prompt, *b"0", END)
    assert first.prompt_length == 5
    assert first.completion_mask == (False,) * 5 + (True, True)
    assert first.logprobs == (0.0,) * 5 + (-1 / 8, -2 / 8)
    assert first.reward == 1.0
    assert first.breakdown == {"numeric": 1.0}
    assert first.reply == "0"
    assert second.token_ids == first.token_ids
    assert not first.truncated
    assert (result.stats.num_episodes, result.stats.sampled_tokens, result.stats.prompt_tokens) == (2, 4, 10)


def test_tool_turns_are_holes_in_the_mask_and_earlier_ids_are_kept_as_sampled() -> None:
    steps = [Step(messages=(tool("42"),)), Step(done=True)]
    engine = FakeEngine(lambda request: "call" if request.request_id.endswith("/0") else "ok")
    result = play(engine, Source(lambda task: Scripted(task, steps)), num_generations=2)
    episode = result.groups[0].episodes[0]
    # END after the reply was sampled (mask True); END after the tool message was not, though the ids are equal.
    delta = (260, *b"42", END, 259)
    assert episode.token_ids == (258, *b"q0", END, 259, *b"call", END, *delta, *b"ok", END)
    assert episode.completion_mask == (False,) * 5 + (True,) * 5 + (False,) * 5 + (True,) * 3
    assert [(t.start, t.end) for t in episode.turns] == [(5, 10), (15, 18)]
    second_request = next(r for r in engine.requests if r.request_id == "3-q0/0/0/1")
    assert second_request.prompt_ids == episode.token_ids[:15]
    assert [m.role for m in episode.messages] == ["user", "assistant", "tool", "assistant"]


@pytest.mark.parametrize("inline", [True, False])
def test_reply_cut_by_length_is_closed_by_the_template_before_the_next_turn(inline: bool) -> None:
    steps = [Step(messages=(tool("t"),), reward=0.25), Step(done=True, reward=0.5, info={"called": True})]
    pool = RewardPool(Rubric([EnvironmentReward()]), timeout_s=30.0)
    source = Source(lambda task: Scripted(task, steps), inline=inline)
    result = play(FakeEngine(lambda r: "abcdef"), source, rewards=pool, max_completion_length=3)
    episode = result.groups[0].episodes[1]
    assert episode.token_ids[5:] == (*b"abc", END, 260, *b"t", END, 259, *b"abc")
    assert episode.completion_mask[5:] == (True,) * 3 + (False,) * 5 + (True,) * 3
    assert episode.truncated
    assert [t.finish_reason for t in episode.turns] == ["length", "length"]
    assert episode.reward == 0.75
    assert episode.info["called"] is True


def test_stop_string_leaves_the_turn_open() -> None:
    class StopEngine(FakeEngine):
        """Ends a reply by its stop string: STOP without END."""

        def add(self, request: GenerationRequest) -> None:
            super().add(request)
            self._left[request.request_id] = [(97, None), (33, FinishReason.STOP)]

    steps = [Step(messages=(tool("t"),)), Step(done=True)]
    result = play(StopEngine(lambda r: "a!"), Source(lambda task: Scripted(task, steps)), stop=("!",))
    assert result.groups[0].episodes[0].token_ids[5:9] == (97, 33, END, 260)


def test_opening_requests_of_a_group_reach_the_engine_together() -> None:
    engine = FakeEngine(lambda request: "a")
    play(engine, Source(), tasks=3, num_generations=4, rollout_batch_size=4)
    batches = [ids for ids in engine.added_before_step if ids]
    assert [sorted(ids) for ids in batches] == [[f"3-q{t}/{g}/0/0" for g in range(4)] for t in range(3)]


def test_no_more_than_rollout_batch_size_episodes_are_in_flight() -> None:
    class Counting(FakeEngine):
        most = 0

        def step(self) -> list[Any]:
            self.most = max(self.most, self.running)
            return super().step()

    engine = Counting(lambda request: "a")
    result = play(engine, Source(), tasks=4, num_generations=5, rollout_batch_size=3)
    assert engine.most == 3
    assert [g.group_id for g in result.groups] == [f"3-q{i}" for i in range(4)]
    assert all(len(g.episodes) == 5 for g in result.groups)


def test_seeds_depend_on_what_is_sampled_and_not_on_the_batch() -> None:
    def seeds(**params: Any) -> dict[str, int | None]:
        engine = FakeEngine(lambda request: "a")
        play(engine, Source(), tasks=4, num_generations=4, **params)
        return {r.request_id: r.params.seed for r in engine.requests}

    wide, narrow = seeds(rollout_batch_size=64), seeds(rollout_batch_size=2)
    assert wide == narrow
    assert len(set(wide.values())) == 16
    assert not {*wide.values()} & {*seeds(step=4).values()}


def test_the_same_task_twice_in_a_step_gets_two_groups() -> None:
    source, engine = Source(), FakeEngine(lambda request: "a")
    pool = RewardPool(Rubric([NumericReward()]), timeout_s=30.0)
    tasks = [source.task(0), source.task(0)]
    result = collect(
        engine, ByteTokens(), source, tasks, RolloutParams(num_generations=1), rewards=pool, seed=0, step=1, round=2
    )
    assert [g.group_id for g in result.groups] == ["1-q0-r2", "1-q0-r2-v1"]
    assert len({r.params.seed for r in engine.requests}) == 2


def test_a_raising_environment_is_retried_with_a_fresh_one() -> None:
    outcomes = iter([RuntimeError("tool server is down"), Step(done=True), Step(done=True)])
    lock = threading.Lock()

    def make(task: Task) -> Environment:
        with lock:
            return Scripted(task, [next(outcomes)])

    source = Source(make)
    result = play(FakeEngine(lambda r: "0"), source)
    assert [len(g.episodes) for g in result.groups] == [2]
    assert sorted(e.info["attempt"] for e in result.groups[0].episodes) == [0, 1]
    assert len(source.made) == 3
    assert (result.stats.environment_failures, result.stats.retried_episodes) == (1, 1)
    assert result.stats.failures == {"environment_failed: RuntimeError: tool server is down": 1}


def test_a_group_whose_environment_keeps_failing_is_dropped_and_the_others_go_on() -> None:
    def make(task: Task) -> Environment:
        return Scripted(task, [RuntimeError("no") if task.task_id == "q1" else Step(done=True)])

    engine = FakeEngine(lambda r: "a long reply")
    result = play(engine, Source(make), tasks=3, num_generations=3, max_episode_retries=2)
    assert [g.group_id for g in result.groups] == ["3-q0", "3-q2"]
    assert (result.stats.dropped_groups, result.stats.num_episodes) == (1, 6)
    assert not engine.has_work


def test_a_hanging_environment_times_out_without_holding_the_run() -> None:
    release = threading.Event()

    class Hanging(Scripted):
        def step(self, reply: str) -> Step:
            release.wait()
            return Step(done=True)

    def make(task: Task) -> Environment:
        return Hanging(task, []) if task.task_id == "q0" else Scripted(task, [Step(done=True)])

    try:
        result = play(
            FakeEngine(lambda r: "1"), Source(make), tasks=2, environment_timeout_s=0.05, max_episode_retries=0
        )
    finally:
        release.set()
    assert [g.group_id for g in result.groups] == ["3-q1"]
    assert result.stats.environment_timeouts == 1


def test_async_environments_share_one_loop_from_start_to_step() -> None:
    class Async:
        def __init__(self, task: Task) -> None:
            self.task = task

        async def start(self) -> Sequence[Message]:
            self.loop = asyncio.get_running_loop()
            return self.task.messages

        async def step(self, reply: str) -> Step:
            await asyncio.sleep(0)
            return Step(done=True, reward=float(asyncio.get_running_loop() is self.loop))

    pool = RewardPool(Rubric([EnvironmentReward()]), timeout_s=30.0)
    result = play(FakeEngine(lambda r: "1"), Source(Async), rewards=pool)  # type: ignore[arg-type]
    assert [e.reward for e in result.groups[0].episodes] == [1.0, 1.0]


def test_generation_goes_on_while_an_environment_works() -> None:
    """The slow environment waits for the other episode to be finished: it would deadlock if generation waited."""
    other_is_done = threading.Event()

    class Slow(Scripted):
        def step(self, reply: str) -> Step:
            assert other_is_done.wait(timeout=20)
            return Step(done=True)

    class Quick(Scripted):
        def step(self, reply: str) -> Step:
            other_is_done.set()
            return Step(done=True)

    def make(task: Task) -> Environment:
        return (Slow if task.task_id == "q0" else Quick)(task, [])

    engine = FakeEngine(lambda r: "0" if "q0" in r.request_id else "0" * 50)
    result = play(engine, Source(make), tasks=2, num_generations=1, max_episode_retries=0)
    assert len(result.groups) == 2


def test_episode_that_has_no_room_for_another_turn_is_truncated() -> None:
    steps = [Step(messages=(tool("x" * 20),)), Step(done=True)]
    result = play(
        FakeEngine(lambda r: "a"), Source(lambda t: Scripted(t, steps)), max_prompt_length=10, max_episode_length=20
    )
    episode = result.groups[0].episodes[0]
    assert episode.truncated
    assert len(episode.turns) == 1
    assert episode.token_ids[-2:] == (*b"a", END)


def test_a_prompt_that_is_too_long_fails_the_run_with_its_task_id() -> None:
    with pytest.raises(InvalidRequest, match=r"task q0 has 5 tokens, max_prompt_length is 4"):
        play(FakeEngine(lambda r: "a"), Source(), max_prompt_length=4)


def test_weight_version_is_that_of_each_turn() -> None:
    class Updated(FakeEngine):
        def add(self, request: GenerationRequest) -> None:
            super().add(request)
            self.weight_version += 1

    steps = [Step(messages=(tool("t"),)), Step(done=True)]
    result = play(Updated(lambda r: "a"), Source(lambda t: Scripted(t, steps), inline=True), num_generations=1)
    assert [t.weight_version for t in result.groups[0].episodes[0].turns] == [1, 2]


@reward("test_collector_fails_first")
def _fails_first(task: Task, episode: Any, *, until: int) -> float:
    if episode.info["attempt"] < until:
        raise RuntimeError("reward broke")
    return 1.0


def test_an_episode_whose_reward_fails_is_retried() -> None:
    pool = RewardPool(Rubric([PluginReward(name="test_collector_fails_first", params={"until": 1})]), timeout_s=30.0)
    result = play(FakeEngine(lambda r: "a"), Source(), rewards=pool)
    assert [(e.reward, e.info["attempt"]) for e in result.groups[0].episodes] == [(1.0, 1), (1.0, 1)]
    assert (result.stats.reward_failures, result.stats.dropped_episodes) == (2, 0)


def test_a_group_in_which_every_reward_fails_is_dropped_and_counted() -> None:
    pool = RewardPool(Rubric([PluginReward(name="test_collector_fails_first", params={"until": 9})]), timeout_s=30.0)
    result = play(FakeEngine(lambda r: "a"), Source(), rewards=pool)
    assert result.groups == []
    assert (result.stats.dropped_groups, result.stats.dropped_episodes) == (1, 2)


def test_params_take_the_fields_of_the_training_configuration() -> None:
    from chatgrpo.training.config import TrainConfig

    params = RolloutParams.from_config(TrainConfig(num_generations=4, stop=["\n"], temperature=0.5))
    assert (params.num_generations, params.stop, params.temperature) == (4, ("\n",), 0.5)
    assert params.max_completion_length == TrainConfig().max_completion_length


def test_groups_are_played_as_they_are_asked_for_and_tokens_know_the_weights_that_sampled_them() -> None:
    engine, source = FakeEngine(lambda request: "0123"), Source(inline=True)
    pool = RewardPool(Rubric([NumericReward()]), timeout_s=30.0)
    settled: dict[str, Group | None] = {}
    collector = Collector(
        engine,
        ByteTokens(),
        source,
        RolloutParams(num_generations=2),
        rewards=pool,
        seed=7,
        clock=SystemClock(),
        on_settled=settled.__setitem__,
    )

    def swap() -> None:
        engine.weight_version = 5

    with collector:
        collector.play(source.task(0), "first")
        collector.turn()
        collector.turn()
        collector.tell(swap)
        collector.play(source.task(1), "second")
        while collector.unsettled:
            collector.turn()
    pool.close()
    assert set(settled) == {"first", "second"}
    first, second = settled["first"], settled["second"]
    assert first is not None
    assert second is not None
    (turn,) = first.episodes[0].turns
    assert (turn.weight_version, turn.swaps, list(turn.versions())) == (0, ((7, 5),), [(0, 2), (5, 3)])
    assert first.oldest_version == 0
    # Its first token was sampled after the swap.
    assert [(t.weight_version, t.swaps) for e in second.episodes for t in e.turns] == [(5, ())] * 2
    assert collector.take_stats().num_groups == 2
