"""The reference of the API for browsers, `/docs` and `/redoc`. All files come from this process: the pages work without
a network, and nothing of another host runs in them."""

from __future__ import annotations

from importlib.resources import files

from fastapi import FastAPI
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from starlette.responses import HTMLResponse

from chatgrpo.api.dashboard.site import FilesWith

ASSETS = "/docs/assets"
# Both pages begin with a script and styles of their own; ReDoc searches in a worker that it makes from a blob.
_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "font-src 'self' data:; connect-src 'self'; worker-src blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


def add_reference_pages(app: FastAPI) -> None:
    """Expects an `app` made with `docs_url=None` and `redoc_url=None`."""
    openapi_url = app.openapi_url
    assert openapi_url is not None, "the pages show the description"
    icon = f"{ASSETS}/favicon.png"

    async def swagger() -> HTMLResponse:
        page = get_swagger_ui_html(
            openapi_url=openapi_url,
            title=f"{app.title}: try the API",
            swagger_js_url=f"{ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{ASSETS}/swagger-ui.css",
            swagger_favicon_url=icon,
            # A key that was typed in stays while the page is reloaded.
            swagger_ui_parameters={"persistAuthorization": True},
        )
        return _careful(page)

    async def redoc() -> HTMLResponse:
        page = get_redoc_html(
            openapi_url=openapi_url,
            title=f"{app.title}: reference",
            redoc_js_url=f"{ASSETS}/redoc.standalone.js",
            redoc_favicon_url=icon,
            with_google_fonts=False,
        )
        return _careful(page)

    # Their names have no version, and they are large: browsers ask once a day.
    app.mount(ASSETS, FilesWith(str(files("fastapi_offline") / "static"), {"Cache-Control": "max-age=86400"}))
    app.add_api_route("/docs", swagger, include_in_schema=False)
    app.add_api_route("/redoc", redoc, include_in_schema=False)


def _careful(page: HTMLResponse) -> HTMLResponse:
    page.headers["Content-Security-Policy"] = _POLICY
    return page
