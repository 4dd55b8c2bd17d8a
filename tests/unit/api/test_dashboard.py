"""The dashboard's files: where they are, what browsers may do with them. Its behaviour is tested in tests/browser."""

from __future__ import annotations

import re

import httpx
import pytest

from chatgrpo.api.dashboard.site import STATIC

FILES = sorted(path.relative_to(STATIC).as_posix() for path in STATIC.rglob("*") if path.is_file())


async def test_the_page_may_only_load_its_own_files(client: httpx.AsyncClient) -> None:
    page = await client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert (policy["default-src"], policy["script-src"], policy["style-src"]) == ("'none'", "'self'", "'self'")
    assert policy["require-trusted-types-for"] == "'script'"
    linked = re.findall(r'(?:src|href)="([^"#]+)"', page.text)
    assert sorted(set(linked)) == ["/dashboard/icon.svg", "/dashboard/main.js", "/dashboard/style.css"]
    assert [(await client.get(link)).status_code for link in linked] == [200] * len(linked)


async def test_files_are_asked_for_anew_but_not_sent_anew(client: httpx.AsyncClient) -> None:
    first = await client.get("/dashboard/main.js")
    assert first.headers["content-type"].startswith("text/javascript")
    assert first.headers["cache-control"] == "no-cache"
    again = await client.get("/dashboard/main.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("path", ["/dashboard/nothing.js", "/dashboard/..%2fsite.py", "/dashboard/%2e%2e/site.py"])
async def test_nothing_else_is_served(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(path)).status_code == 404


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith((".js", ".html"))])
def test_nothing_inline_nothing_foreign_no_markup_from_text(name: str) -> None:
    text = (STATIC / name).read_text(encoding="utf-8")
    foreign = [url for url in re.findall(r"https?://[^\s\"']+", text) if url != "http://www.w3.org/2000/svg"]
    assert foreign == []
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|javascript:", text) == []
    assert re.findall(r"<script(?![^>]*\bsrc=)|\sstyle=\"|\son\w+=\"", text) == []


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".js")])
def test_every_import_is_a_file(name: str) -> None:
    found = re.findall(r'from "(\.[^"]+)"', (STATIC / name).read_text(encoding="utf-8"))
    assert [i for i in found if not ((STATIC / name).parent / i).is_file()] == []
