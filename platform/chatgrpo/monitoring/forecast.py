"""What a load will be: level, damped trend and, where the past repeats itself, seasons (Holt and Winters), by
statsmodels."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

# Fewer say nothing about a trend.
MIN_POINTS = 12
# How much a series must look like itself a period ago to count as seasonal.
_SEASONAL = 0.3
# 90 % of a normal distribution lie within so many deviations.
_DEVIATIONS = 1.645


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """One value a step; nine of ten should lie between `low` and `high`. `method` in words."""

    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    method: str
    num_points: int

    @property
    def peak(self) -> int:
        """The step with the highest mean."""
        return max(range(len(self.mean)), key=self.mean.__getitem__)


def forecast(values: Sequence[float], *, horizon: int, periods: Sequence[int] = ()) -> Forecast:
    """`values` at equal distances, the newest last; none is negative and no forecast is. `periods` (steps) are tried in
    order; the first in which the past repeats itself is taken."""
    past = np.asarray(values, dtype=float)
    if len(past) < MIN_POINTS or past.max() == past.min():
        return _flat(past, horizon)
    period = next((period for period in periods if _repeats(past, period)), None)
    # 1.5 s to load, and only a hub with some past needs it.
    from statsmodels.tsa.holtwinters import ExponentialSmoothing

    with warnings.catch_warnings():
        # A fit that has not quite converged is still a forecast, and its band says how good it is.
        warnings.simplefilter("ignore")
        fitted = ExponentialSmoothing(
            past,
            trend="add",
            damped_trend=True,
            seasonal="add" if period else None,
            seasonal_periods=period,
            initialization_method="heuristic",
        ).fit()
        mean = np.asarray(fitted.forecast(horizon))
    spread = float(np.std(fitted.resid))
    band = [_DEVIATIONS * spread * sqrt(1 + step / 4) for step in range(horizon)]
    method = f"trend and a season of {period} steps" if period else "trend"
    return _made(mean.tolist(), band, method, len(past))


def _flat(past: np.ndarray[tuple[int], np.dtype[np.float64]], horizon: int) -> Forecast:
    recent = past[-MIN_POINTS:]
    mean, spread = (float(recent.mean()), float(recent.std())) if len(recent) else (0.0, 0.0)
    return _made([mean] * horizon, [_DEVIATIONS * spread] * horizon, "recent mean", len(past))


def _made(mean: Sequence[float], band: Sequence[float], method: str, num_points: int) -> Forecast:
    return Forecast(
        mean=tuple(max(0.0, value) for value in mean),
        low=tuple(max(0.0, value - width) for value, width in zip(mean, band, strict=True)),
        high=tuple(max(0.0, value + width) for value, width in zip(mean, band, strict=True)),
        method=method,
        num_points=num_points,
    )


def _repeats(past: np.ndarray[tuple[int], np.dtype[np.float64]], period: int) -> bool:
    """Autocorrelation at the period, without the line through the series: a trend looks like itself at any lag."""
    if len(past) < 2 * period + 1:
        return False
    steps = np.arange(len(past))
    flat = past - np.polyval(np.polyfit(steps, past, 1), steps)
    if flat.std() < 1e-9 * max(1.0, abs(past).max()):
        return False
    return float(np.corrcoef(flat[:-period], flat[period:])[0, 1]) > _SEASONAL
