"""Serves the dashboard: `/` and its files under `/dashboard/`. No build step, nothing from other hosts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from fastapi import FastAPI
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

STATIC = Path(__file__).parent / "static"

# Nothing inline and nothing foreign runs, and no text can become markup: assigning innerHTML is an error in browsers
# that know trusted types.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
# `no-cache` means: ask whether it has changed. The files have no version in their names.
HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cache-Control": "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class FilesWith(StaticFiles):
    """StaticFiles that sends `headers` with everything."""

    def __init__(self, directory: str | os.PathLike[str], headers: Mapping[str, str]) -> None:
        super().__init__(directory=directory)
        self._headers = headers

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(self._headers)
        return response


async def index() -> Response:
    """The dashboard's only page; which view it shows is in the fragment of its address."""
    return FileResponse(STATIC / "index.html", headers=HEADERS)


def add_dashboard(app: FastAPI) -> None:
    app.add_api_route("/", index, include_in_schema=False, response_class=FileResponse)
    app.mount("/dashboard", FilesWith(STATIC, HEADERS))
