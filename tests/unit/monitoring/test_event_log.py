"""What a reader who comes back gets, and what waits for one who does not read."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatgrpo.monitoring.event_log import EventLog, Replay
from chatgrpo.monitoring.outbox import Outbox


def filled(**options: int) -> EventLog:
    """The topics begin with the numbers 1 and 2; job:a has the events 3 and 5, metrics has 4 and 6."""
    log = EventLog("e", **options)
    log.begin("job:a")
    log.begin("metrics")
    for number, topic in enumerate(["job:a", "metrics", "job:a", "metrics"], start=3):
        log.add(topic, topic, f"{number}")
    return log


def after(log: EventLog, event_id: str, *topics: str) -> list[str] | None:
    """The texts; None when something is missing."""
    replay = log.after(event_id, topics=topics, channels=set(topics))
    return [event.text for event in replay.events] if replay.is_complete else None


def test_who_comes_back_gets_what_came_after_his_last_event_on_his_topics() -> None:
    log = filled()
    assert log.last_id == "e-6"
    assert after(log, "e-2", "job:a", "metrics") == ["3", "4", "5", "6"]
    assert after(log, "e-4", "job:a") == ["5"]
    assert after(log, "e-4", "metrics") == ["6"]
    assert after(log, "e-6", "metrics") == []


@pytest.mark.parametrize("strange", ["other-2", "e-7", "e-", "2", "", "e-x", "e--1", "e-²", "e-" + "9" * 5000])
def test_an_id_that_says_nothing_here_is_answered_with_that(strange: str) -> None:
    assert after(filled(), strange, "metrics") is None


def test_what_was_dropped_is_missing_only_for_readers_of_its_topic() -> None:
    log = filled(max_events=2)  # 3 and 4 are gone
    assert after(log, "e-3", "metrics") is None
    assert after(log, "e-4", "metrics") == ["6"]
    assert after(log, "e-2", "job:a") is None
    assert after(log, "e-3", "job:a") == ["5"]


def test_long_texts_push_out_older_ones() -> None:
    log = filled(max_chars=10)
    log.add("metrics", "metrics", "x" * 50)
    assert after(log, "e-6", "metrics") == ["x" * 50]
    assert after(log, "e-5", "metrics") is None


def test_a_topic_is_known_from_when_it_is_looked_at() -> None:
    log = filled()
    assert after(log, "e-6", "job:b") is None
    log.begin("job:b")
    assert after(log, "e-6", "job:b") is None
    assert after(log, "e-7", "job:b") == []
    log.end("job:b")
    log.begin("job:b")
    assert after(log, "e-7", "job:b") is None


def test_a_channel_of_another_tenant_is_not_told() -> None:
    log = EventLog("e")
    log.begin("alerts")
    log.add("alerts", "alerts@ann", "hers")
    log.add("alerts", "alerts", "all")
    replay = log.after("e-1", topics=["alerts"], channels={"alerts", "alerts@bob"})
    assert [event.text for event in replay.events] == ["all"]
    assert log.after("x", topics=["alerts"], channels=()) == Replay(events=(), is_complete=False)


@given(st.lists(st.sampled_from("abc")), st.integers(1, 5), st.data())
@settings(deadline=None)
def test_a_complete_answer_is_exactly_what_was_missed(said: list[str], max_events: int, data: st.DataObject) -> None:
    log = EventLog("e", max_events=max_events)
    for topic in "abc":
        log.begin(topic)
    for number, topic in enumerate(said, start=1):
        log.add(topic, topic, str(number))
    # The three topics took the first numbers.
    seen = data.draw(st.integers(0, len(said)))
    for topic in "abc":
        missed = [str(n) for n, t in enumerate(said, start=1) if t == topic and n > seen]
        found = after(log, f"e-{seen + 3}", topic)
        kept = [str(n) for n, t in enumerate(said, start=1) if n > len(said) - max_events]
        assert found == missed if set(missed) <= set(kept) else found is None


def test_an_outbox_holds_so_many_and_then_nothing_more() -> None:
    box = Outbox(max_waiting=2, max_chars=10)
    assert [box.put("a"), box.put("b")] == [True, True]
    assert [box.take(), box.put("c")] == ["a", True]
    assert [box.put("d"), box.has_overflowed, box.take(), box.put("e")] == [False, True, None, False]


def test_an_outbox_counts_what_waits_by_its_length_too() -> None:
    box = Outbox(max_waiting=9, max_chars=10)
    assert box.put("x" * 50)  # alone it always fits
    assert not box.put("y")
    box = Outbox(max_waiting=9, max_chars=10)
    assert [box.put("x" * 6), box.take(), box.put("y" * 6), len(box), box.put("z" * 5)] == [
        True,
        "x" * 6,
        True,
        1,
        False,
    ]
