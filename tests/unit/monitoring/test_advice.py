"""What is advised: forecasts of golden series, decisions as values, a load that is remembered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from chatgrpo.monitoring.advice import Advice, Facts, confidence, decide
from chatgrpo.monitoring.advice_config import AdviceConfig
from chatgrpo.monitoring.advisor import Advisor
from chatgrpo.monitoring.analytics import chat_cost, job_cost, quantile, summary
from chatgrpo.monitoring.forecast import Forecast, forecast
from chatgrpo.monitoring.history import History
from chatgrpo.monitoring.load_log import LoadLog, LoadPoint, resampled

CONFIG = AdviceConfig(replies_a_replica=10, max_replicas=4)
INF = float("inf")


def expected(mean: float, at_most: float | None = None, *, num_points: int = 100) -> Forecast:
    high = mean if at_most is None else at_most
    return Forecast(
        mean=(mean / 2, mean), low=(0, 2 * mean - high), high=(mean / 2, high), method="trend", num_points=num_points
    )


def advised(replies: Forecast, *, replicas: int, p95: float | None = None, workers: int = 1, jobs: float = 1) -> Any:
    facts = Facts(
        replicas=replicas, replies=replies, chat_p95_s=p95, workers=workers, jobs=expected(jobs), ahead_s=1800
    )
    return decide(facts, CONFIG)


@pytest.mark.parametrize(
    ("replies", "replicas", "p95", "wanted"),
    [
        (expected(25), 1, None, 3),  # ahead of load
        (expected(25), 3, None, 3),
        (expected(25, 28), 4, None, 3),  # also the worst fits into three
        (expected(15, 38), 4, None, 4),  # down only when even the worst fits
        (expected(0), 3, None, 1),
        (expected(5), 1, 11.0, 2),  # slow already
        (expected(5), 1, 9.0, 1),
        (expected(500), 1, None, 4),  # bounded
    ],
)
def test_replicas_follow_what_is_expected(replies: Forecast, replicas: int, p95: float | None, wanted: int) -> None:
    found = advised(replies, replicas=replicas, p95=p95)[0]
    assert (found.what, found.now, found.wanted) == ("chat_replicas", replicas, wanted)


def test_an_advice_says_why_and_how_sure_it_is() -> None:
    slow, workers = advised(expected(18, 27), replicas=2, p95=12.5, workers=1, jobs=3)
    assert slow.reason == (
        "95 % of chats take up to 12.5 s, more than 10 s; 18.0 replies at once are expected within 30 minutes "
        "(at most 27.0, by trend); a replica is good for 10"
    )
    assert slow.confidence == confidence(expected(18, 27)) == round(1 / (1 + 18 / 36), 3)
    assert workers == Advice(
        what="training_workers",
        now=1,
        wanted=3,
        reason="3.0 jobs that run or wait are expected within 30 minutes (at most 3.0, by trend)",
        confidence=1.0,
    )
    assert [confidence(expected(10, num_points=n)) for n in (0, 15, 30)] == [0.0, 0.5, 1.0]


def day(hour: float) -> float:
    return 10 + 8 * math.sin(2 * math.pi * hour / 24)


def test_a_season_is_seen_coming() -> None:
    past = [day(hour / 4) + 0.1 * (hour % 3) for hour in range(96 * 3)]
    found = forecast(past, horizon=24, periods=[96])
    assert found.method == "trend and a season of 96 steps"
    truth = [day((96 * 3 + step) / 4) for step in range(24)]
    assert max(abs(a - b) for a, b in zip(found.mean, truth, strict=True)) < 1.5
    assert found.peak >= 20, "the morning rises for six hours"


def test_a_trend_goes_on_and_noise_widens_the_band() -> None:
    rising = forecast([float(n) for n in range(40)], horizon=5)
    assert rising.mean[0] == pytest.approx(40, abs=1)
    assert rising.mean[4] > 41
    calm = forecast([10.0, 10.2] * 20, horizon=3)
    wild = forecast([0.0, 20.0, 3.0, 17.0] * 10, horizon=3)
    assert wild.high[0] - wild.low[0] > 10 * (calm.high[0] - calm.low[0])


@pytest.mark.parametrize("past", [[], [3.0], [3.0] * 50])
def test_without_a_past_it_says_what_was(past: Sequence[float]) -> None:
    found = forecast(past, horizon=2)
    level = past[0] if past else 0.0
    assert (found.mean, found.low, found.high) == ((level,) * 2,) * 3


def test_no_forecast_is_negative() -> None:
    found = forecast([float(n) for n in range(40, 0, -1)], horizon=30)
    assert min(*found.mean, *found.low) >= 0


def test_load_is_remembered_over_a_restart_for_two_weeks(tmp_path: Path) -> None:
    path = tmp_path / "new" / "load.jsonl"
    log = LoadLog(path)
    days = 86_400.0
    for at in (0.0, 1 * days, 13 * days, 14.5 * days):
        log.add(LoadPoint(at=at, replies=at / days, jobs=0))
    with path.open("a") as file:
        file.write('{"at": 99')
    again = LoadLog(path)
    assert [point.at / days for point in again.points] == [1, 13, 14.5]
    assert (again.is_due(14.5 * days + 59), again.is_due(14.5 * days + 60)) == (False, True)


def test_steps_are_means_and_gaps_repeat() -> None:
    points = [LoadPoint(at=at, replies=value, jobs=0) for at, value in ((10, 2), (20, 4), (130, 9), (500, 1))]
    assert resampled(points, "replies", step_s=60, since=0, until=200) == [3, 3, 9]
    assert resampled(points, "replies", step_s=60, since=600, until=900) == []


@pytest.mark.parametrize(
    ("buckets", "share", "found"),
    [
        ({1.0: 10, 2.0: 20, INF: 20}, 0.5, 1.0),
        ({1.0: 10, 2.0: 20, INF: 20}, 0.75, 1.5),
        ({1.0: 0, 2.0: 10, INF: 20}, 0.99, 2.0),
        ({1.0: 0, INF: 0}, 0.5, None),
        ({}, 0.5, None),
    ],
)
def test_quantiles_as_prometheus_has_them(buckets: dict[float, float], share: float, found: float | None) -> None:
    assert quantile(buckets, share) == found


def test_costs() -> None:
    config = AdviceConfig(cpu_hour=0.1, gpu_hour=2, replica_cpus=2, replica_gpus=1)
    assert chat_cost(1.0, 3, config) == pytest.approx(1000 * 3 * (0.2 + 2) / 3600)
    assert chat_cost(0.0, 3, config) is None
    assert job_cost(cpu_hours=10, gpu_hours=2, config=config) == pytest.approx(5)


def served(history: History, now: float, *, requests: float, slow: float, replies: float) -> None:
    route = {"route": "/api/v2/chat"}
    seconds = "chatgrpo_http_request_seconds_bucket"
    history.add(
        now,
        [
            ("chatgrpo_http_requests_total", route | {"method": "POST", "status": "2xx"}, requests),
            (seconds, route | {"le": "1.0"}, requests - slow),
            (seconds, route | {"le": "5.0"}, requests),
            (seconds, route | {"le": "+Inf"}, requests),
            ("chatgrpo_chat_requests", {}, replies),
            ("chatgrpo_jobs", {"state": "running"}, 2.0),
        ],
    )


def test_windows_tell_rates_and_percentiles() -> None:
    history = History(keep_s=4000)
    for minute in range(61):
        served(history, minute * 60.0 + 1, requests=minute * 60.0, slow=minute * 6.0, replies=4)
    found = summary(history, 3601.0)
    assert found["5m"]["chats_per_s"] == pytest.approx(240 / 300)
    assert found["1h"]["requests_per_s"] == pytest.approx(59 * 60 / 3600)
    assert found["5m"]["p95_s"] == pytest.approx(1 + 4 * 0.5)
    assert (found["5m"]["replies_in_flight"], found["5m"]["error_rate"], found["5m"]["gpu_percent"]) == (4, 0, None)


async def test_an_advisor_sees_a_rising_load_before_it_is_there() -> None:
    history, advisor = History(keep_s=4000), Advisor(CONFIG)
    for minute in range(60):
        now = minute * 60.0 + 1
        served(history, now, requests=minute, slow=0, replies=minute / 4)
        await advisor.observe(history, now)
    replicas, workers = advisor.advice
    assert (replicas.now, workers.wanted) == (1, 2)
    assert replicas.wanted >= 2, "15 now, and rising"
    assert 0.5 < replicas.confidence <= 1
    view = advisor.view(history, 3541.0)
    assert (view["applied"], view["forecast"]["method"], len(view["forecast"]["points"])) == (False, "trend", 30)
    assert view["advice"][0]["wanted"] == replicas.wanted
