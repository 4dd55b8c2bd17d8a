"""Silences that survive a restart of the hub: one small JSON file, replaced as a whole."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from chatgrpo.monitoring.alerts import Silence

logger = logging.getLogger(__name__)


class SilenceFile:
    """`path` is made when the first silence is."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> list[Silence]:
        """Empty when there is no file. One that cannot be read is said in the log and left as it is: alerts are told
        rather than kept quiet by mistake."""
        try:
            return [Silence(**row) for row in json.loads(self._path.read_text(encoding="utf-8"))]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError) as error:
            logger.error("silences in %s cannot be read: %s", self._path, error)
            return []

    def save(self, silences: Iterable[Silence]) -> None:
        """Durable when it returns."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        with partial.open("w", encoding="utf-8") as file:
            json.dump([asdict(silence) for silence in silences], file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self._path)
