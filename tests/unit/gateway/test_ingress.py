"""The environment that Ray Serve reads its mode from."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from starlette.types import Receive, Scope, Send

from chatgrpo.config import PlatformConfig
from chatgrpo.gateway.ingress import is_haproxy, max_connections, prepare_ingress


def test_the_default_changes_nothing(tmp_path: Path) -> None:
    environment: dict[str, str] = {}
    prepare_ingress(PlatformConfig(home=tmp_path), environment)
    assert environment == {}
    assert not is_haproxy(environment)


def test_haproxy_keeps_to_a_folder_of_its_own_and_trusts_no_header(tmp_path: Path) -> None:
    environment = {"RAY_SERVE_HAPROXY_MAXCONN": "99"}
    prepare_ingress(PlatformConfig(home=tmp_path, ingress="haproxy", port=65001), environment)
    assert is_haproxy(environment)
    assert environment["RAY_SERVE_HAPROXY_MAXCONN"] == "99", "what is said already stands"
    assert environment["FORWARDED_ALLOW_IPS"] == "192.0.2.0", "an address that nobody has"
    folder = Path(environment["RAY_SERVE_HAPROXY_SOCKET_PATH"]).parent
    assert folder.stat().st_mode & 0o077 == 0
    assert len(environment["RAY_SERVE_HAPROXY_SOCKET_PATH"]) < 100, "a socket's path has little room"
    folder.rmdir()


def test_as_many_connections_as_files_allow() -> None:
    assert max_connections(1_000_000) == 8192
    assert 7_000 < max_connections(20_000) < 8_000
    assert max_connections(1_024) == 64


async def test_clients_cannot_make_serve_watch_them_or_change_its_timeout(tmp_path: Path) -> None:
    seen: list[list[tuple[bytes, bytes]]] = []

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["headers"])

    async def nothing(*_: Any) -> Any:
        raise AssertionError("headers are all there is")

    environment: dict[str, str] = {}
    prepare_ingress(PlatformConfig(home=tmp_path, ingress="haproxy", port=65002), environment)
    Path(environment["RAY_SERVE_HAPROXY_SOCKET_PATH"]).parent.rmdir()
    module, _, name = environment["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"].rpartition(".")
    (layer,) = getattr(importlib.import_module(module), name)()
    sent = [(b"x-request-disconnect-disabled", b"?0"), (b"x-request-timeout-seconds", b"0"), (b"accept", b"*/*")]
    await layer.cls(serve)({"type": "http", "headers": sent}, nothing, nothing)
    assert seen == [[(b"accept", b"*/*"), (b"x-request-disconnect-disabled", b"?1")]]
