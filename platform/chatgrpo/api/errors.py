"""Every answer that is not a success has one shape: {"error": {"code", "message", ...}}. Never a stack trace."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException

from chatgrpo.errors import Conflict, InvalidRequest, PlatformError, RateLimited, Unavailable
from chatgrpo.gateway.response_headers import careful_headers

logger = logging.getLogger(__name__)

# A value under such a name is never repeated back.
_SECRET = re.compile(r"(^|[_\-.])(keys?|secrets?|passwords?|passwd|token|authorization|credentials?)$", re.IGNORECASE)
_MAX_SEEN = 80
_NAMED = re.compile(r"([a-z][a-z0-9_.]*): (.*)", re.DOTALL)
_CODES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    415: "unsupported_media_type",
}


class ErrorDetail(BaseModel):
    """One field that was refused."""

    field: str = Field(description="Dotted path of the field; empty for the body as a whole.")
    message: str = Field(description="What is wrong and what was wanted.")
    seen: str | None = Field(
        None, description="The value seen, shortened; absent when it may be secret or is an object."
    )


class ErrorInfo(BaseModel):
    code: str = Field(description="Stable name of the kind of error, for programs.")
    message: str = Field(description="What happened and what to do next, for people.")
    field: str | None = Field(None, description="The first refused field, if any.")
    details: list[ErrorDetail] | None = Field(None, description="All refused fields.")
    current_version: int | None = Field(None, description="On a version conflict: the version to retry with.")


class ErrorBody(BaseModel):
    """The body of every error."""

    error: ErrorInfo


RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "Refused; the body says why and what to send instead."},
    "5XX": {"model": ErrorBody, "description": "The platform could not answer."},
    422: {"model": ErrorBody, "description": "A field has a value that can never work."},
}


def error_body(error: PlatformError) -> dict[str, Any]:
    """Also used inside streams, where the status is already sent."""
    info = ErrorInfo(code=error.code, message=error.message)
    if isinstance(error, InvalidRequest):
        info.field = error.field or None
    if isinstance(error, Conflict):
        info.current_version = error.current_version
    return ErrorBody(error=info).model_dump(exclude_none=True)


def handle_errors(app: FastAPI) -> None:
    """Registers the handlers. One place decides what a caller gets to see."""
    app.add_exception_handler(PlatformError, platform_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected)


async def platform_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, PlatformError)
    headers = {}
    if isinstance(error, RateLimited | Unavailable):
        headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    return JSONResponse(error_body(error), error.status, headers)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if error.errors() and error.errors()[0]["loc"][0] == "body" and not _is_json(media_type):
        return _answer(415, f"content type {media_type or 'missing'!r} is not understood; send application/json")
    return JSONResponse(_refusal(error.errors(), error.body), InvalidRequest.status)


def refusal_of(error: ValidationError, data: object) -> dict[str, Any]:
    """The error body for data that was validated outside of a route."""
    return _refusal(error.errors(), data)


def _refusal(errors: Sequence[Mapping[str, Any]], data: object) -> dict[str, Any]:
    details = [_detail(e, data) for e in errors]
    info = ErrorInfo(
        code=InvalidRequest.code,
        message="; ".join(f"{d.field}: {d.message}" if d.field else d.message for d in details),
        field=details[0].field or None,
        details=details,
    )
    return ErrorBody(error=info).model_dump(exclude_none=True)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    messages = {
        404: f"no route {request.url.path}; GET /docs lists them",
        405: f"{request.method} is not possible on {request.url.path}; the Allow header says what is",
    }
    return _answer(error.status_code, messages.get(error.status_code, str(error.detail)), error.headers)


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    logger.error("unexpected error method=%s path=%s", request.method, request.url.path, exc_info=error)
    request_id = getattr(request.state, "request_id", "")
    return _answer(500, "the platform made a mistake; its log says which", careful_headers(request_id))


def _answer(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    info = ErrorInfo(code=_CODES.get(status, "internal" if status >= 500 else "refused"), message=message)
    return JSONResponse(ErrorBody(error=info).model_dump(exclude_none=True), status, dict(headers or {}))


def _is_json(media_type: str) -> bool:
    return media_type == "application/json" or media_type.endswith("+json")


def _detail(error: Mapping[str, Any], data: object) -> ErrorDetail:
    if error["type"] == "json_invalid":
        reason = error.get("ctx", {}).get("error", "unreadable")
        return ErrorDetail(field="", message=f"the body is not valid JSON ({reason})")
    field, message = field_path(error, data), _message(error)
    # A validator of the whole object says in its message which field it means: "stop: ...".
    named = _NAMED.match(message) if error["type"] == "value_error" else None
    if named:
        field, message = f"{field}.{named[1]}" if field else named[1], named[2]
    return ErrorDetail(field=field, message=message, seen=_seen(field, error.get("input")))


def field_path(error: Mapping[str, Any], data: object) -> str:
    """("body", "rewards", 0, "verifier", "weight") -> "rewards[0].weight". Union tags ("verifier"), which pydantic puts
    into the location but which are in no request, are recognised by not being in `data` and left out."""
    loc = error["loc"]
    if loc and loc[0] in {"body", "query", "path", "header", "cookie"}:
        data, loc = (data, loc[1:]) if loc[0] == "body" else (None, loc[1:])
    path, here = "", data
    for i, part in enumerate(loc):
        if isinstance(here, Mapping) and part not in here and not (error["type"] == "missing" and i == len(loc) - 1):
            continue
        if isinstance(here, Mapping):
            here = here.get(part)
        elif isinstance(here, list) and isinstance(part, int):
            here = here[part] if part < len(here) else None
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path


def _message(error: Mapping[str, Any]) -> str:
    if error["type"] == "extra_forbidden":
        return "unknown field; leave it out or correct its name"
    if error["type"] == "missing":
        return "is required"
    # "Input should be ..." speaks of the input; here the field's name stands in front.
    message = str(error["msg"]).removeprefix("Value error, ")
    return message.replace("Input should", "should", 1) if message.startswith("Input should") else message


def _seen(field: str, value: object) -> str | None:
    if _SECRET.search(field) or not isinstance(value, str | int | float | bool | None):
        return None
    text = repr(value)
    return text if len(text) <= _MAX_SEEN else f"{text[: _MAX_SEEN - 1]}…"
