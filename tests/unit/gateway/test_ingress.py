"""The environment that Ray Serve reads its mode from."""

from __future__ import annotations

from pathlib import Path

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
