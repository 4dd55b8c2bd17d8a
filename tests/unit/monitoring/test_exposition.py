"""The figures of many processes as one text that Prometheus takes."""

from __future__ import annotations

from prometheus_client.openmetrics.parser import text_string_to_metric_families

from chatgrpo.monitoring import catalog
from chatgrpo.monitoring.catalog import Kind
from chatgrpo.monitoring.exposition import expose, families_of
from chatgrpo.monitoring.history import Row
from chatgrpo.monitoring.merging import Merged, rows_of
from chatgrpo.monitoring.meters import Meters, custom

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def process(*seconds: float, route: str = "/a") -> Meters:
    made = Meters()
    for value in seconds:
        made.of(catalog.HTTP_SECONDS).observe(value, route=route, trace_id="ab" * 16)
    made.of(custom(Kind.COUNTER, "sold", "What was sold.", ())).inc(2)
    return made


def merged(*processes: Meters) -> list[Row]:
    together = Merged(from_zero=True)
    for number, made in enumerate(processes):
        together.report(str(number), rows_of(made.registry), 1.0)
    return together.rows(1.0)


def test_two_processes_make_one_histogram_with_buckets_in_order_and_exemplars() -> None:
    here, there = process(0.02, 3.0), process(0.02, 100.0, route="/b")
    text, _ = expose(merged(here, there), [here.registry], OPENMETRICS)
    families = {family.name: family for family in text_string_to_metric_families(text.decode())}
    seconds = families["chatgrpo_http_request_seconds"]
    assert (seconds.type, seconds.unit) == ("histogram", "seconds")
    counts = {s.labels["route"]: s.value for s in seconds.samples if s.name.endswith("_count")}
    assert counts == {"/a": 2, "/b": 2}
    bounds = [s.labels["le"] for s in seconds.samples if s.labels.get("route") == "/a" and "le" in s.labels]
    assert bounds == sorted(bounds, key=float)
    assert {s.labels["le"] for s in seconds.samples if s.exemplar} == {"0.05", "5.0"}


def test_a_programs_own_metric_keeps_its_kind_also_from_another_process() -> None:
    there = process()
    assert [(f.name, f.type, f.samples[0].value) for f in families_of(merged(there))] == [
        ("chatgrpo_custom_sold", "counter", 2.0)
    ]
    described = families_of(merged(there, there), [there.registry])
    assert (described[0].documentation, described[0].samples[0].value) == ("What was sold.", 4.0)


def test_what_every_process_of_a_machine_counts_alike_is_not_added_up() -> None:
    together = Merged()
    row: Row = ("chatgrpo_network_sent_bytes_total", {}, 500.0)
    for source in ("a", "b"):
        together.report(source, [row], 1.0)
    assert together.rows(1.0) == [row]
