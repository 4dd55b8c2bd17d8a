"""What a worker process of the GRPO benchmark is, whichever trainer it holds. Standard library only.

A worker reads its case from the JSON file that its first argument names, makes one step to warm up and tells the
driver of it by one line of JSON. From then on it makes one step for every line that it hears and tells of it likewise;
at the end of its input it leaves. So two trainers can be asked in turn, and one is idle while the other works.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
import zlib
from pathlib import Path
from typing import Any

_NUMBER = re.compile(r"(?:(?<![\w.)\]])[-+])?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")


def numeric(reply: str, answer: str) -> float:
    """1 when the last number of the reply is the answer."""
    numbers = _NUMBER.findall(reply)
    return float(bool(numbers) and abs(float(numbers[-1].replace(",", "")) - float(answer)) <= 1e-6)


def spread(reply: str) -> float:
    """A reward that says nothing and differs between any two replies: every group has something to train on."""
    return zlib.crc32(reply.encode()) / 2**32


def letters(reply: str, answer: str) -> float:
    """The share of the first eight characters that are the letter of the task."""
    return reply[:8].count(answer) / 8


def peak_memory() -> int:
    """Bytes. Not `ru_maxrss` where /proc knows better: that one begins with the peak of the process that forked."""
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
        if found:
            return int(found.group(1)) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Turns:
    """The worker's side of the protocol. What libraries print goes to the log, not between the lines."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self.case: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
        self.began()

    def began(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def done(self, **figures: float) -> bool:
        """Tells of the step that ended now and waits for the next; False when there is none."""
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        line = {"wall_s": wall, "cpu_s": cpu, "peak_bytes": peak_memory(), **figures}
        self._out.write(json.dumps(line) + "\n")
        self._out.flush()
        goes_on = bool(sys.stdin.readline())
        self.began()
        return goes_on
