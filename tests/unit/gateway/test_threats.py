"""Addresses that behave like an attack are turned away, for longer each time, and are forgiven."""

from __future__ import annotations

from ipaddress import ip_network

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatgrpo.api.app import create_app
from chatgrpo.api.services import Services
from chatgrpo.gateway.config import GatewayConfig, ThreatConfig
from chatgrpo.gateway.identity import LOCAL
from chatgrpo.gateway.key_format import new_key
from chatgrpo.gateway.roles import Role
from chatgrpo.gateway.threats import Offence, Record, ThreatWatch, faded, judge, offence_of
from tests.fakes import FakeClock

CONFIG = ThreatConfig(never_blocked=())
KEY = new_key("01ARZ3NDEKTSV4RRFFQ69G5FAV")


def test_points_fade_by_half() -> None:
    assert faded(Record(points=80, num_blocks=2, at=100), 220, CONFIG).points == 20
    assert judge(Record(points=80, at=100), 30, 160, CONFIG).points == 70


def test_blocks_double_until_the_longest() -> None:
    record, lengths = Record(), []
    for _ in range(8):
        now = record.blocked_until
        record = judge(record, 100, now, CONFIG)
        lengths.append(record.blocked_until - now)
    assert lengths[:4] == [60, 120, 240, 480]
    assert lengths[-1] <= CONFIG.max_block_s
    later = judge(record, 100, record.blocked_until + 3 * 3600, CONFIG)
    assert later.blocked_until - later.at == 60


@given(st.lists(st.tuples(st.floats(0, 1000), st.floats(0, 200)), max_size=30))
def test_a_record_stays_in_bounds(offences: list[tuple[float, float]]) -> None:
    record, now = Record(), 0.0
    for wait_s, points in offences:
        now += wait_s
        record = judge(record, points, now, CONFIG)
        assert 0 <= record.points < CONFIG.threshold
        assert record.blocked_until <= now + CONFIG.max_block_s


@pytest.mark.parametrize(
    ("status", "key", "offence"),
    [
        (401, KEY, Offence.WRONG_KEY),
        (401, "sk-guess", Offence.MALFORMED_KEY),
        (401, None, None),
        (422, KEY, Offence.BAD_BODY),
        (413, None, Offence.BAD_BODY),
        (403, KEY, None),
        (429, KEY, None),
        (404, KEY, None),
    ],
)
def test_what_an_answer_says(status: int, key: str | None, offence: Offence | None) -> None:
    assert offence_of(status, key) == offence


def test_some_are_always_and_some_never_blocked(clock: FakeClock) -> None:
    config = ThreatConfig(blocked=(ip_network("203.0.113.0/24"),), never_blocked=(ip_network("10.0.0.0/8"),))
    watch = ThreatWatch(config, clock=clock)
    for _ in range(100):
        watch.report("10.1.1.1", Offence.MALFORMED_KEY)
        watch.report("8.8.8.8", Offence.MALFORMED_KEY)
    found = {a: watch.is_blocked(a) for a in ("203.0.113.9", "10.1.1.1", "8.8.8.8", "8.8.4.4", "", "testclient")}
    assert found == {
        "203.0.113.9": True,
        "10.1.1.1": False,
        "8.8.8.8": True,
        "8.8.4.4": False,
        "": False,
        "testclient": False,
    }


async def test_guessing_keys_and_probing_paths_ends_in_a_block(services: Services, clock: FakeClock) -> None:
    gateway = GatewayConfig(
        allowed_hosts=("platform",),
        counters="memory",
        trusted_proxies=(ip_network("127.0.0.0/8"),),
        threats=ThreatConfig(),
    )
    config = services.config.model_copy(update={"gateway": gateway})
    app = create_app(
        Services(
            config=config,
            clock=clock,
            jobs=services.jobs,
            chat=services.chat,
            conversations=services.conversations,
        )
    )
    key = (await app.state.gateway.keyring.create(LOCAL, name="a", role=Role.VIEWER)).key
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://platform") as client:

        async def get(path: str, address: str, key: str) -> int:
            headers = {"x-forwarded-for": f"1.1.1.1, {address}", "authorization": f"Bearer {key}"}
            return (await client.get(path, headers=headers)).status_code

        assert [await get("/api/v2/jobs", "8.8.8.8", "sk-guess") for _ in range(6)] == [401] * 5 + [403]
        assert await get("/api/v2/jobs", "8.8.8.8", key) == 403, "a right guess comes too late"
        assert await get("/api/v2/jobs", "8.8.4.4", key) == 200
        assert [await get("/wp-admin", "9.9.9.9", key) for _ in range(21)] == [404] * 20 + [403]
        assert [await get("/api/v2/jobs/unknown", "7.7.7.7", key) for _ in range(30)] == [404] * 30
        clock.advance(60)
        assert await get("/api/v2/jobs", "8.8.8.8", key) == 200
        text = (await client.get("/metrics", headers={"authorization": f"Bearer {key}"})).text
    assert 'chatgrpo_offences_total{kind="malformed_key"} 5.0' in text
    assert "chatgrpo_blocks_total 2.0" in text
    assert key not in text
