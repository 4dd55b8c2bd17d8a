"""OWASP API7, server side request forgery: what the platform calls for somebody leads to public addresses only."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from chatgrpo.errors import InvalidRequest, Unavailable
from chatgrpo.monitoring.outbound import pinned


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://localhost:6379/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://0177.0.0.1/",
        "http://0.0.0.0/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:10.0.0.1]/",
        "http://[2002:7f00:1::]/",
        "http://10.1.2.3/",
        "http://172.16.0.1/",
        "http://192.168.0.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://[fe80::1]/",
        "http://[fd00:ec2::254]/",
        "http://100.64.0.1/",
        "http://224.0.0.1/",
        "http://255.255.255.255/",
    ],
)
async def test_private_addresses_in_any_spelling_are_refused(url: str) -> None:
    with pytest.raises((InvalidRequest, Unavailable)):
        await pinned(url, allow_private=False)


async def test_a_name_that_leads_inside_is_refused_and_cannot_change_its_mind(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [["93.184.216.34"], ["93.184.216.34", "127.0.0.1"], ["10.0.0.8"]]

    async def resolve(name: str, port: int, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in answers.pop(0)]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    target = await pinned("https://rebind.example/hook", allow_private=False)
    assert target.url == "https://93.184.216.34:443/hook", "the address that was checked is the one that is called"
    for _ in range(2):
        with pytest.raises(InvalidRequest, match="not a public address"):
            await pinned("https://rebind.example/hook", allow_private=False)
