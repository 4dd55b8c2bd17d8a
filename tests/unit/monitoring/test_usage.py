"""What people do, and what is kept quiet, over a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from chatgrpo.errors import NotFound
from chatgrpo.monitoring import usage
from chatgrpo.monitoring.alert_config import AlertsConfig
from chatgrpo.monitoring.meters import Meters
from chatgrpo.monitoring.monitor import Monitor
from chatgrpo.monitoring.silence_file import SilenceFile
from chatgrpo.monitoring.usage import cache_rows, count_act
from tests.fakes import FakeClock


def test_conversations_turns_and_opinions_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Meters()
    monkeypatch.setattr(usage, "PROCESS", made)
    for method in ("create", "fork", "append", "append", "append", "get", "delete"):
        count_act(method, {})
    for score in (1.0, -1.0, None):
        count_act("feedback", {"score": score, "label": "x"})
    value = made.registry.get_sample_value
    assert value("chatgrpo_conversations_started_total") == 2
    assert value("chatgrpo_conversation_turns_total") == 3
    assert (value("chatgrpo_feedback_score_count"), value("chatgrpo_feedback_score_sum")) == (2, 1)


def test_a_cache_that_counts_itself_is_told_by_tier() -> None:
    assert cache_rows("conversation", num_hits=3, num_misses=1) == [
        ("chatgrpo_cache_lookups_total", {"tier": "conversation", "result": "hit"}, 3.0),
        ("chatgrpo_cache_lookups_total", {"tier": "conversation", "result": "miss"}, 1.0),
    ]


async def test_silences_survive_a_restart(tmp_path: Path) -> None:
    clock, file = FakeClock(), SilenceFile(tmp_path / "new" / "silences.json")

    def hub() -> Monitor:
        return Monitor(AlertsConfig(), clock=clock, silence_file=file)

    first = hub()
    kept = await first.silence(rule=None, labels={"job_id": "a"}, seconds=60, by="ann", reason="known")
    gone = await first.silence(rule=None, labels={}, seconds=60, by="ann", reason="")
    await first.unsilence(gone["id"])
    again = hub()
    assert await again.silences() == [kept]
    clock.advance(61)
    assert await again.silences() == []
    with pytest.raises(NotFound):
        await again.unsilence(gone["id"])


async def test_a_broken_file_of_silences_keeps_nothing_quiet(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "silences.json"
    path.write_text("[{")
    assert SilenceFile(path).load() == []
    assert "cannot be read" in caplog.text
