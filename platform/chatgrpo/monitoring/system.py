"""What the machine of this process is doing: processor, memory, disk, network, GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil


def read_system(disk_path: Path) -> dict[str, Any]:
    """Percentages of the whole machine and bytes. `cpu_percent` is since the previous call of this process; `disk_*`
    is of the file system that holds `disk_path`. `gpus` is empty without NVIDIA GPUs."""
    memory = psutil.virtual_memory()
    disk = psutil.disk_usage(str(_nearest_existing(disk_path)))
    network = psutil.net_io_counters()
    return {
        "cpu_percent": psutil.cpu_percent(interval=None),
        "cpu_count": psutil.cpu_count() or 1,
        "load_average_1m": psutil.getloadavg()[0],
        "memory_percent": memory.percent,
        "memory_used_bytes": memory.total - memory.available,
        "memory_total_bytes": memory.total,
        "disk_percent": disk.percent,
        "disk_free_bytes": disk.free,
        "network_sent_bytes": network.bytes_sent if network else 0,
        "network_received_bytes": network.bytes_recv if network else 0,
        "process_memory_bytes": psutil.Process().memory_info().rss,
        "gpus": read_gpus(),
    }


def read_gpus() -> list[dict[str, Any]]:
    """One entry a GPU, in the driver's order; empty where there is no NVIDIA driver or its library (extra `gpu`)."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        return [_read_gpu(pynvml, i) for i in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()


def _read_gpu(nvml: Any, index: int) -> dict[str, Any]:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return {
        "index": index,
        "name": nvml.nvmlDeviceGetName(handle),
        "utilization_percent": nvml.nvmlDeviceGetUtilizationRates(handle).gpu,
        "memory_used_bytes": memory.used,
        "memory_total_bytes": memory.total,
    }


def _nearest_existing(path: Path) -> Path:
    path = path.expanduser().resolve()
    return next(p for p in (path, *path.parents) if p.exists())
