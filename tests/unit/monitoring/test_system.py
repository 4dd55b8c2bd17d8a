"""What the machine is doing."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from chatgrpo.monitoring.system import read_gpus, read_system


class NVMLError(Exception):
    pass


def nvml(num_gpus: int | None) -> SimpleNamespace:
    """A driver with so many GPUs; None: no driver."""

    def init() -> None:
        if num_gpus is None:
            raise NVMLError

    return SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=init,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: num_gpus,
        nvmlDeviceGetHandleByIndex=lambda i: i,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=handle * 2**30, total=24 * 2**30),
        nvmlDeviceGetName=lambda handle: "A10G",
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=50 + handle),
    )


def test_gpus_in_the_drivers_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml(2))
    assert read_gpus() == [
        {
            "index": i,
            "name": "A10G",
            "utilization_percent": 50 + i,
            "memory_used_bytes": i * 2**30,
            "memory_total_bytes": 24 * 2**30,
        }
        for i in (0, 1)
    ]


def test_no_driver_is_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml(None))
    assert read_gpus() == []


def test_figures_are_the_machines(tmp_path: Path) -> None:
    facts = read_system(tmp_path / "not" / "made" / "yet")
    assert facts["memory_total_bytes"] == psutil.virtual_memory().total
    assert facts["cpu_count"] == psutil.cpu_count()
    assert 0 <= facts["disk_percent"] <= 100
    assert facts["process_memory_bytes"] > 2**20
