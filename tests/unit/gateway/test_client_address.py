"""X-Forwarded-For counts only as far as trusted proxies wrote it."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from chatgrpo.gateway.client_address import client_address
from chatgrpo.gateway.hosts import hosts_of, is_allowed, is_foreign

PROXIES = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("203.0.113.7", [], "203.0.113.7"),
        ("203.0.113.7", ["127.0.0.1"], "203.0.113.7"),  # an untrusted peer's header is worth nothing
        ("10.0.0.1", ["198.51.100.2"], "198.51.100.2"),
        ("10.0.0.1", ["127.0.0.1", "198.51.100.2"], "198.51.100.2"),  # spoofed on the left
        ("10.0.0.1", ["1.2.3.4", "198.51.100.2", "10.0.0.9"], "198.51.100.2"),
        ("10.0.0.1", ["10.0.0.3", "10.0.0.2"], "10.0.0.3"),  # all trusted: the outermost
        ("10.0.0.1", ["198.51.100.2:4711"], "198.51.100.2"),
        ("fd00::1", ["[2001:db8::1]:80"], "2001:db8::1"),
        ("10.0.0.1", ["::ffff:198.51.100.2"], "198.51.100.2"),
        ("::ffff:10.0.0.1", ["198.51.100.2"], "198.51.100.2"),
        ("10.0.0.1", ["198.51.100.2", "unknown"], "10.0.0.1"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("", ["198.51.100.2"], ""),
    ],
)
def test_right_most_untrusted(peer: str, forwarded: list[str], client: str) -> None:
    assert client_address(peer, forwarded, PROXIES) == client


def test_hosts() -> None:
    loopback = hosts_of((), "127.0.0.1")
    for host, allowed in {
        "localhost:8002": True,
        "127.0.0.1": True,
        "127.9.9.9:1": True,
        "[::1]:8002": True,
        "LOCALHOST": True,
        "evil.example": False,
        "": False,
    }.items():
        assert is_allowed(host, loopback) is allowed, host
    assert is_allowed("anything", hosts_of((), "0.0.0.0"))
    named = hosts_of(("Platform.example",), "0.0.0.0")
    assert [is_allowed(host, named) for host in ("platform.example:443", "127.0.0.1")] == [True, False]


def test_pages_of_others() -> None:
    named = frozenset({"platform.example"})
    for origin, foreign in {
        None: False,
        "http://127.0.0.1:8002": False,
        "https://platform.example": False,
        "http://127.0.0.1:3000": True,
        "https://evil.example": True,
        "https://platform.example.evil.example": True,
        "null": True,
        "": True,
    }.items():
        assert is_foreign(origin, "127.0.0.1:8002", named) is foreign, origin
