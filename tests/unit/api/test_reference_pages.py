"""The reference pages work without a network, and the description says how to show a key."""

from __future__ import annotations

import re

import httpx


async def test_the_pages_load_nothing_from_elsewhere(client: httpx.AsyncClient) -> None:
    for path, script in (("/docs", "swagger-ui-bundle.js"), ("/redoc", "redoc.standalone.js")):
        page = await client.get(path)
        assert page.status_code == 200
        loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert f"/docs/assets/{script}" in loaded
        for file in loaded:
            assert file.startswith("/docs/assets/"), file
            assert (await client.get(file)).status_code == 200
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "http" not in policy


async def test_every_operation_says_what_it_asks_for(client: httpx.AsyncClient) -> None:
    described = (await client.get("/openapi.json")).json()
    assert described["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    operations = {(method, path): found for path, item in described["paths"].items() for method, found in item.items()}
    assert operations["get", "/api/v2/health"]["security"] == []
    chat = operations["post", "/v1/chat/completions"]
    assert (chat["security"], chat["x-permission"]) == ([{"bearer": []}, {"header": []}], "chat:write")
    assert all("security" in operation for operation in operations.values())


async def test_what_is_large_is_compressed_and_streams_are_not(client: httpx.AsyncClient) -> None:
    large = await client.get("/openapi.json", headers={"accept-encoding": "gzip"})
    assert large.headers["content-encoding"] == "gzip"
    plain = await client.get("/openapi.json", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.json() == large.json()
    said = {"message": "hi " * 2000, "stream": True}
    stream = await client.post("/api/v2/chat", json=said, headers={"accept-encoding": "gzip"})
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert "content-encoding" not in stream.headers
