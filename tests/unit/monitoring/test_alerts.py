"""Golden series: what is fed is written out, and so is every moment at which an alert fires or is resolved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatgrpo.monitoring.alert_config import AlertsConfig, load_alerts
from chatgrpo.monitoring.alerts import AlertState, Looked, look
from chatgrpo.monitoring.conditions import increase
from chatgrpo.monitoring.history import History, Row
from chatgrpo.monitoring.monitor import reach

Feed = Callable[[float], Iterable[Row]]


def rule(when: Mapping[str, Any], **fields: Any) -> AlertsConfig:
    return AlertsConfig(rules=[{"name": "R", "when": when, "summary": "{job_id} {value:g}", **fields}])


def run(config: AlertsConfig, feed: Feed, until: float, tick: float = 10.0) -> list[tuple[float, str, str]]:
    """(time, state, summary) of every change, looking every `tick` seconds from 0."""
    history = History(keep_s=max(60.0, *(reach(r.when) for r in config.rules)) * 1.1)
    looked, changes, now = Looked(active={}, changed=[]), [], 0.0
    while now <= until:
        history.add(now, feed(now))
        looked = look(config.rules, history, looked.active, now)
        changes += [(now, str(a.state), a.summary) for a in looked.changed]
        now += tick
    return changes


def series(name: str, *steps: tuple[float, float], job: str = "a") -> Feed:
    """A figure that takes each value from its time on; before the first there is none."""

    def feed(now: float) -> Iterable[Row]:
        values = [value for at, value in steps if at <= now]
        return [(name, {"job_id": job}, values[-1])] if values else []

    return feed


def test_a_threshold_fires_when_it_has_held_and_resolves_when_it_ends() -> None:
    config = rule({"type": "threshold", "metric": "kl", "op": ">", "value": 1}, for_s=30)
    feed = series("kl", (0, 0.5), (100, 2.0), (120, 0.5), (200, 3.0), (300, 0.1))
    assert run(config, feed, 400) == [(230, "firing", "a 3"), (300, "resolved", "a 3")]


def test_a_mean_looks_back() -> None:
    config = rule({"type": "threshold", "metric": "kl", "take": "mean", "over_s": 40, "op": ">=", "value": 1})
    # Of the four newest points two are 2 from t=110 on, and one is from t=140 on.
    assert run(config, series("kl", (0, 0.0), (100, 2.0), (130, 0.0)), 300) == [
        (110, "firing", "a 1"),
        (150, "resolved", "a 1"),
    ]


def test_a_series_that_ends_resolves() -> None:
    config = rule({"type": "threshold", "metric": "kl", "op": ">", "value": 1})

    def feed(now: float) -> Iterable[Row]:
        return [("kl", {"job_id": "a"}, 5.0)] if now < 50 else []

    assert run(config, feed, 300) == [(0, "firing", "a 5"), (100, "resolved", "a 5")]


def test_each_series_has_its_own_alert() -> None:
    config = rule({"type": "threshold", "metric": "kl", "op": ">", "value": 1})
    a, b = series("kl", (20, 2.0)), series("kl", (0, 0.0), (50, 3.0), job="b")
    assert run(config, lambda now: [*a(now), *b(now)], 60) == [(20, "firing", "a 2"), (50, "firing", "b 3")]


def test_a_rate_sums_counters_and_survives_a_restart() -> None:
    config = rule(
        {"type": "rate", "metric": "errors_total", "over_s": 60, "op": ">", "value": 1.0}, summary="{value:g}"
    )

    def feed(now: float) -> Iterable[Row]:
        # 2 a second from 100 to 200; one of two processes begins anew at 150.
        count = 10 * min(max(0, (now - 100) / 10), 10)
        yield "errors_total", {"replica": "1"}, count
        yield "errors_total", {"replica": "2"}, count if now < 150 else count - 50

    assert run(config, feed, 400) == [(140, "firing", "1.33333"), (220, "resolved", "1.33333")]


def test_a_change_needs_a_series_as_old_as_its_window() -> None:
    config = rule({"type": "change", "metric": "step", "over_s": 100, "op": "<=", "value": 0})
    moving = [(at, at / 50) for at in range(0, 500, 50)]
    assert run(config, series("step", *moving), 900) == [(540, "firing", "a 0")]
    assert run(config, series("step", (200, 7)), 400) == [(290, "firing", "a 0")]


def test_a_relative_change_is_a_share_of_the_first() -> None:
    config = rule({"type": "change", "metric": "len", "over_s": 100, "relative": True, "op": ">", "value": 0.5})
    assert run(config, series("len", (0, 20.0), (200, 31.0)), 400) == [
        (200, "firing", "a 0.55"),
        (290, "resolved", "a 0.55"),
    ]


def test_absence_counts_from_the_start_or_the_last_point() -> None:
    config = rule({"type": "absence", "metric": "up", "over_s": 60}, summary="{value:g} s")
    other = series("other", (0, 1))
    assert run(config, other, 100) == [(60, "firing", "60 s")]

    def feed(now: float) -> Iterable[Row]:
        return [*other(now), *([("up", {}, 1.0)] if now <= 200 or now >= 400 else [])]

    assert run(config, feed, 500) == [(260, "firing", "60 s"), (400, "resolved", "190 s")]


def test_a_budget_must_burn_long_and_still() -> None:
    counted = {"metric": "requests_total"}
    config = rule(
        {
            "type": "burn_rate",
            "bad": {**counted, "where": {"status": "5xx"}},
            "total": counted,
            "objective": 0.9,
            "long_s": 600,
            "short_s": 60,
            "factor": 2.5,
        },
        summary="{value:.2f}",
    )

    def feed(now: float) -> Iterable[Row]:
        # 1 request a second; all of them fail from 1000 to 1200.
        bad = min(max(0.0, now - 1000), 200)
        return [("requests_total", {"status": "2xx"}, now - bad), ("requests_total", {"status": "5xx"}, bad)]

    # 590 s lie between the points of ten minutes: more than a quarter of them is bad 150 s after the beginning. Of the
    # five stretches of the last minute one is bad at 1240, a fifth.
    assert run(config, feed, 2000) == [(1150, "firing", "2.54"), (1240, "resolved", "3.39")]


def test_reward_hacking_is_reward_up_and_held_out_down_in_the_same_job() -> None:
    shipped = load_alerts()
    config = AlertsConfig(rules=[r for r in shipped.rules if r.name == "RewardHacking"])
    reward, held = "chatgrpo_training_reward", "chatgrpo_training_eval_reward"
    parts = [
        series(reward, (0, 0.3), (2000, 0.6)),
        series(held, (0, 0.5), (2400, 0.3)),
        series(reward, (0, 0.3), (2000, 0.6), job="honest"),
        series(held, (0, 0.5), (2400, 0.6), job="honest"),
        series(held, (0, 0.5), (2400, 0.1), job="unlucky"),
    ]
    said = "job a: the training reward rises while the held-out reward fell by -0.200"
    # From 2400 both have changed within half an hour; at 3790 the first reward in it is 0.6 already.
    assert run(config, lambda now: [row for part in parts for row in part(now)], 6000) == [
        (2460, "firing", said),
        (3790, "resolved", said),
    ]


# Every shipped rule about learning beside RewardHacking: a figure goes wrong at 3000 and is right again at 5000. Means
# follow when enough of their window is wrong or right, changes end when the window begins after them, each waits for_s.
@pytest.mark.parametrize(
    ("name", "figure", "good", "bad", "fires", "resolves"),
    [
        ("KLRunaway", "kl_nats", 0.02, 3.0, 3150, 5200),
        ("EntropyCollapse", "entropy_nats", 1.2, 0.01, 3340, 5010),
        ("LengthDrift", "completion_tokens", 20.0, 40.0, 3060, 4790),
        ("StaleWeights", "sampler_delta_nats", 0.001, 0.2, 3060, 5000),
        ("NothingToLearn", "zero_variance_groups_ratio", 0.4, 1.0, 3560, 5090),
        ("NotFinite", "rows_nonfinite", 0.0, 2.0, 3000, 5000),
    ],
)
def test_each_shipped_rule_about_learning(
    name: str, figure: str, good: float, bad: float, fires: float, resolves: float
) -> None:
    config = AlertsConfig(rules=[r for r in load_alerts().rules if r.name == name])
    feed = series(f"chatgrpo_training_{figure}", (0, good), (3000, bad), (5000, good))
    assert [(at, state) for at, state, _ in run(config, feed, 8000)] == [(fires, "firing"), (resolves, "resolved")]


def test_a_step_that_hangs_is_said_after_fifteen_minutes() -> None:
    config = AlertsConfig(rules=[r for r in load_alerts().rules if r.name == "StalledStep"])
    steps = [(at, at / 60) for at in range(0, 3060, 60)]
    feed = series("chatgrpo_training_step", *steps, (5000, 51.0))
    # The last step began to show at 3000; the next one at 5000.
    assert [(at, state) for at, state, _ in run(config, feed, 5200)] == [(3890, "firing"), (5000, "resolved")]


def test_firing_is_told_once() -> None:
    config = rule({"type": "threshold", "metric": "kl", "op": ">", "value": 1})
    assert len(run(config, series("kl", (0, 5.0)), 10_000)) == 1


def test_a_gap_begins_the_wait_anew() -> None:
    config = rule({"type": "threshold", "metric": "kl", "op": ">", "value": 1}, for_s=30)
    flapping = [(at, 2.0 if at % 40 else 0.0) for at in range(0, 400, 10)]
    assert run(config, series("kl", *flapping), 390) == []


def test_the_shipped_rules_stay_silent_on_a_healthy_platform() -> None:
    healthy = {
        "chatgrpo_training_reward": 0.5,
        "chatgrpo_training_eval_reward": 0.5,
        "chatgrpo_training_kl_nats": 0.02,
        "chatgrpo_training_entropy_nats": 1.2,
        "chatgrpo_training_completion_tokens": 20.0,
        "chatgrpo_training_sampler_delta_nats": 0.001,
        "chatgrpo_training_zero_variance_groups_ratio": 0.4,
        "chatgrpo_training_rows_nonfinite": 0.0,
    }

    def feed(now: float) -> Iterable[Row]:
        yield from ((name, {"job_id": "a"}, value) for name, value in healthy.items())
        yield "chatgrpo_training_step", {"job_id": "a"}, now // 60
        yield "chatgrpo_component_up", {"component": "jobs"}, 1.0
        yield "chatgrpo_http_requests_total", {"status": "2xx"}, now
        yield "chatgrpo_http_requests_total", {"status": "5xx"}, now / 1000
        yield "chatgrpo_disk_percent", {}, 60.0
        yield "chatgrpo_memory_percent", {}, 70.0

    assert run(load_alerts(), feed, 4000) == []


@pytest.mark.parametrize("state", AlertState)
def test_states_are_words(state: AlertState) -> None:
    assert state.value in {"pending", "firing", "resolved"}


@given(st.lists(st.lists(st.floats(0, 100), min_size=1, max_size=5), min_size=1, max_size=4))
def test_a_counter_grows_by_all_it_counted_however_often_it_restarts(lives: list[list[float]]) -> None:
    points, counted = [(0.0, 0.0)], 0.0
    for life in lives:
        total = 0.0
        for grown in life:
            total += grown
            points.append((float(len(points)), total))
        counted += total
        points.append((float(len(points)), 0.0))
    assert increase(points) == pytest.approx(counted)
