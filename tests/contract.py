"""What every running platform answers over HTTP, whatever stands in front of it."""

from __future__ import annotations

import json
import socket
from urllib.parse import urlsplit

import httpx
from websockets.sync.client import connect


def check_contract(url: str, headers: dict[str, str], *, model: str = "tiny") -> None:
    """Raises AssertionError. The platform serves `model`; `headers` hold a key where one is asked for."""
    with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
        _check_refusals(client)
        _check_streams(client, model)
        _check_leaving(client, url, headers, model)
        # Headers of the server in front must not switch off what the platform does itself.
        odd = {"x-request-timeout-seconds": "0", "x-request-disconnect-disabled": "?1", "x-forwarded-for": "127.0.0.1"}
        assert client.get("/api/v2/models", headers=odd).status_code == 200
    _check_socket(url, headers)


def _check_refusals(client: httpx.Client) -> None:
    for method, path, status, code in (
        ("GET", "/api/v2/nothing", 404, "not_found"),
        ("PUT", "/api/v2/chat", 405, "method_not_allowed"),
        ("GET", "/api/v2/jobs/nobody", 404, "not_found"),
    ):
        answer = client.request(method, path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
        assert answer.headers["x-content-type-options"] == "nosniff"
        # The server in front may add one of its own.
        assert any(len(value) == 32 for value in answer.headers.get_list("x-request-id"))
    assert client.post("/api/v2/chat", json={"message": "x", "temprature": 1}).status_code == 422
    assert client.post("/api/v2/chat", content=b"{", headers={"content-type": "application/json"}).status_code == 422
    large = client.post("/api/v2/chat", content=b" " * (5 * 2**20), headers={"content-type": "application/json"})
    assert large.status_code == 413
    assert client.get("/api/v2/health", headers={"host": "evil.example"}).status_code == 421
    assert client.get("/api/v2/models", headers={"x": "a" * 70_000}).status_code in {400, 431}


def _check_streams(client: httpx.Client, model: str) -> None:
    said = client.post("/api/v2/chat", json={"message": "Hi", "model": model, "max_tokens": 3, "temperature": 0})
    assert said.status_code == 200, said.text
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "temperature": 0}
    whole = client.post("/v1/chat/completions", json=body).json()
    with client.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    text = "".join(json.loads(event)["choices"][0]["delta"].get("content", "") for event in events[:-1])
    assert text == whole["choices"][0]["message"]["content"]


def _check_leaving(client: httpx.Client, url: str, headers: dict[str, str], model: str) -> None:
    """A client that leaves in the middle of a stream frees its place."""
    body = {"message": "Hello", "model": model, "max_tokens": 1900, "stream": True, "temperature": 1.0}
    with httpx.stream("POST", f"{url}/api/v2/chat", json=body, headers=headers, timeout=60) as answer:
        next(answer.iter_lines())
    for _ in range(400):
        if client.get("/api/v2/system/status").json()["chat"]["active_requests"] == 0:
            return
    raise AssertionError("the reply is still being written")


def _check_socket(url: str, headers: dict[str, str]) -> None:
    with connect(url.replace("http", "ws") + "/ws/v2", additional_headers=headers, open_timeout=30) as ws:
        ws.send(json.dumps({"type": "ping"}))
        assert json.loads(ws.recv(timeout=30))["type"] == "pong"


def listens_beyond_loopback(url: str) -> bool:
    """Whether the port of `url` is open on the other addresses of this machine."""
    port = urlsplit(url).port
    assert port is not None
    others = {str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for address in others - {"127.0.0.1", "127.0.1.1"}:
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex((address, port)) == 0:
                return True
    return False
