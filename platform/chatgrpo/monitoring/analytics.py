"""Figures over a window: rates, percentiles, use, cost. Pure over a history."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

from chatgrpo.monitoring import catalog
from chatgrpo.monitoring.advice_config import AdviceConfig
from chatgrpo.monitoring.history import History, Labels

WINDOWS_S: Mapping[str, float] = {"5m": 300.0, "1h": 3600.0}
CHAT_ROUTES = frozenset({"/api/v2/chat", "/v1/chat/completions"})


def quantile(buckets: Mapping[float, float], share: float) -> float | None:
    """Of a histogram given as {upper bound: observations up to it}, as Prometheus' histogram_quantile has it. None
    without observations; the highest bound when the answer lies beyond it."""
    bounds = sorted(buckets)
    total = buckets[bounds[-1]] if bounds else 0.0
    if total <= 0:
        return None
    wanted, below, lower = share * total, 0.0, 0.0
    for bound in bounds:
        count = buckets[bound]
        if count >= wanted and count > below:
            if bound == float("inf"):
                return lower
            return lower + (bound - lower) * (wanted - below) / (count - below)
        below, lower = count, bound
    return lower


class Window:
    """What the series of a history did in the last `over_s` seconds."""

    def __init__(self, history: History, now: float, over_s: float) -> None:
        self._history, self._now, self._over_s = history, now, over_s
        # Asked for several figures, looked up once: a window is of one moment.
        self._found: dict[str, dict[Labels, list[tuple[float, float]]]] = {}

    def grown(self, name: str, where: Callable[[dict[str, str]], bool] = lambda _: True) -> float:
        """How much the counters of this name grew together."""
        return sum(last - first for labels, first, last in self._ends(name) if where(dict(labels)) and last >= first)

    def mean(self, name: str) -> float | None:
        """Of the highest of the gauges of this name."""
        means = [fmean(v for _, v in points) for points in self._points(name).values()]
        return max(means, default=None)

    def quantile(
        self, name: str, share: float, where: Callable[[dict[str, str]], bool] = lambda _: True
    ) -> float | None:
        buckets: dict[float, float] = defaultdict(float)
        for labels, first, last in self._ends(f"{name}_bucket"):
            known = dict(labels)
            if where(known) and last >= first:
                buckets[float(known["le"])] += last - first
        return quantile(buckets, share)

    def rate(self, name: str, where: Callable[[dict[str, str]], bool] = lambda _: True) -> float:
        """A second."""
        return self.grown(name, where) / self._over_s

    def _points(self, name: str) -> dict[Labels, list[tuple[float, float]]]:
        if name not in self._found:
            self._found[name] = self._history.window(name, {}, self._now - self._over_s, self._now)
        return self._found[name]

    def _ends(self, name: str) -> list[tuple[Labels, float, float]]:
        return [(labels, points[0][1], points[-1][1]) for labels, points in self._points(name).items()]


def is_chat(labels: Mapping[str, str]) -> bool:
    return labels.get("route") in CHAT_ROUTES


def summary(history: History, now: float) -> dict[str, dict[str, Any]]:
    """By window. Times in seconds; None where nothing happened."""
    return {name: _of(Window(history, now, over_s)) for name, over_s in WINDOWS_S.items()}


def _of(window: Window) -> dict[str, Any]:
    requests = window.grown(catalog.HTTP_REQUESTS.sample_name)
    failed = window.grown(catalog.HTTP_REQUESTS.sample_name, lambda labels: labels["status"] == "5xx")
    seconds, waits = catalog.HTTP_SECONDS.name, catalog.HTTP_QUEUE_SECONDS.name
    return {
        "requests_per_s": window.rate(catalog.HTTP_REQUESTS.sample_name),
        "error_rate": failed / requests if requests else 0.0,
        "p50_s": window.quantile(seconds, 0.5),
        "p95_s": window.quantile(seconds, 0.95),
        "p99_s": window.quantile(seconds, 0.99),
        "chat_p95_s": window.quantile(seconds, 0.95, is_chat),
        "queue_p95_s": window.quantile(waits, 0.95),
        "chats_per_s": window.rate(catalog.HTTP_REQUESTS.sample_name, is_answered_chat),
        "chat_tokens_per_s": window.rate(catalog.CHAT_TOKENS.sample_name),
        "replies_in_flight": window.mean(catalog.CHAT_REQUESTS.name),
        "cpu_percent": window.mean(catalog.CPU_PERCENT.name),
        "memory_percent": window.mean(catalog.MEMORY_PERCENT.name),
        "gpu_percent": window.mean(catalog.GPU_PERCENT.name),
        "training_tokens_per_s": window.mean(catalog.TRAINING["rollout/tokens_per_s"].name),
        "training_mfu": window.mean(catalog.TRAINING["mfu"].name),
    }


def is_answered_chat(labels: Mapping[str, str]) -> bool:
    return is_chat(labels) and labels["status"] == "2xx"


def chat_cost(chats_per_s: float, replicas: float, config: AdviceConfig) -> float | None:
    """Of a thousand chats at this rate; None while nobody chats."""
    hour = replicas * (config.replica_cpus * config.cpu_hour + config.replica_gpus * config.gpu_hour)
    return 1000 * hour / (3600 * chats_per_s) if chats_per_s > 0 else None


def job_cost(*, cpu_hours: float, gpu_hours: float, config: AdviceConfig) -> float:
    return cpu_hours * config.cpu_hour + gpu_hours * config.gpu_hour
