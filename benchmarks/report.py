"""What every benchmark leaves behind: `benchmarks/results/NAME.json` with figures, goals, machine and command."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def figure(
    value: float, unit: str, *, at_least: float | None = None, at_most: float | None = None, **details: Any
) -> dict[str, Any]:
    """`goal` and `met` are null without a goal. `details` say what the value was made of."""
    goal = None
    met = None
    if at_least is not None:
        goal, met = f">= {at_least:g}", value >= at_least
    elif at_most is not None:
        goal, met = f"<= {at_most:g}", value <= at_most
    return {"value": round(value, 4), "unit": unit, "goal": goal, "met": met, **details}


def write_report(name: str, figures: Mapping[str, Mapping[str, Any]]) -> Path:
    """Writes the file and prints one line a figure."""
    report = {"figures": dict(figures), "machine": machine(), "command": f"make bench NAME={name}"}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for key, found in figures.items():
        verdict = "" if found["met"] is None else f"  goal {found['goal']}: {'met' if found['met'] else 'MISSED'}"
        print(f"{key:40} {found['value']:>12g} {found['unit']}{verdict}")
    print(path)
    return path


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        )
        if Path("/proc/cpuinfo").exists()
        else iter(()),
        platform.processor(),
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": sys.version.split()[0],
    }
