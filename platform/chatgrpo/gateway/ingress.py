"""What stands in front of the replicas: Ray Serve's own proxy, or HAProxy with Serve in throughput mode.

Serve reads its mode from the environment when it is imported, and hands it on to every process it starts.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from tempfile import gettempdir

from chatgrpo.config import PlatformConfig

_MAX_CONNECTIONS = 8192
_OWN_FILES = 4500
_SWITCH = "RAY_SERVE_ENABLE_HA_PROXY"


def is_haproxy(environment: Mapping[str, str]) -> bool:
    return environment.get(_SWITCH) == "1"


def max_connections(max_files: int) -> int:
    """HAProxy does not start when it cannot have two file descriptors a connection and some 4,200 for itself."""
    if max_files == resource.RLIM_INFINITY:
        return _MAX_CONNECTIONS
    return max(64, min(_MAX_CONNECTIONS, (max_files - _OWN_FILES) // 2))


def prepare_ingress(platform: PlatformConfig, environment: MutableMapping[str, str] = os.environ) -> None:
    """To be called before anything imports Ray Serve. What the environment says already stands."""
    if platform.ingress != "haproxy":
        return
    folder = Path(gettempdir()) / f"cgha-{os.getuid()}-{platform.port}"
    # Its control socket takes orders from whoever can open it; the path of a socket has little room.
    folder.mkdir(mode=0o700, exist_ok=True)
    settings = {
        _SWITCH: "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # Four threads on two cores would take turns with the replicas.
        "RAY_SERVE_HAPROXY_NBTHREAD": str(max(1, min(4, (os.cpu_count() or 1) // 2))),
        "RAY_SERVE_HAPROXY_MAXCONN": str(max_connections(resource.getrlimit(resource.RLIMIT_NOFILE)[1])),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        # HAProxy passes on what clients write into X-Forwarded-For, and uvicorn believes it of loopback. Whose word
        # counts is said by gateway.trusted_proxies alone.
        "FORWARDED_ALLOW_IPS": "192.0.2.0",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "chatgrpo.gateway.serve_door.middleware",
    }
    for name, value in settings.items():
        environment.setdefault(name, value)
