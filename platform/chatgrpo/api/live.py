"""Questions over one open socket: `/ws/v2`. Its own application, so that long-lived sockets never take a request slot
from the API.

    {"type": "ping"}                              -> {"type": "pong", "data": {...}}
    {"type": "metrics"}                           -> {"type": "metrics_response", "data": {...}}
    {"type": "health"}                            -> {"type": "health_response", "data": {...}}
    {"type": "job_status", "job_id": "..."}       -> {"type": "job_status_response", "data": {...}}
    anything else                                 -> {"type": "error", "data": {"code", "message", ...}}
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from fastapi import APIRouter, FastAPI, WebSocket, WebSocketDisconnect
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.middleware import Middleware

from chatgrpo.api.errors import error_body, handle_errors, refusal_of
from chatgrpo.api.identity import owner_of
from chatgrpo.api.operations import Operations
from chatgrpo.api.services import Services
from chatgrpo.errors import InvalidRequest, PlatformError

router = APIRouter()

# No question is longer; a longer message is a mistake or an attack.
MAX_MESSAGE_CHARS = 64 * 1024


class _Question(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Ping(_Question):
    type: Literal["ping"]


class Metrics(_Question):
    type: Literal["metrics"]


class Health(_Question):
    type: Literal["health"]


class JobStatus(_Question):
    type: Literal["job_status"]
    job_id: str = Field(min_length=1, max_length=128)


_questions: TypeAdapter[Ping | Metrics | Health | JobStatus] = TypeAdapter(
    Annotated[Ping | Metrics | Health | JobStatus, Field(discriminator="type")]
)


def create_live_app(services: Services, operations: Operations, *, middleware: Sequence[Middleware] = ()) -> FastAPI:
    """The application to mount under `/ws`. Where nothing in front of it keeps the door, `middleware` must: that of
    the gateway."""
    app = FastAPI(title="chatgrpo live", docs_url=None, redoc_url=None, openapi_url=None, middleware=list(middleware))
    app.state.services = services
    app.state.operations = operations
    handle_errors(app)
    app.include_router(router)
    return app


@router.websocket("/v2")
async def live(socket: WebSocket) -> None:
    """Answers questions in order until the client leaves."""
    if not same_origin(socket):
        # Before accept: the handshake is answered with 403, and a foreign page learns nothing.
        await socket.close(code=1008, reason="this page's origin is not the platform's")
        return
    await socket.accept()
    try:
        while True:
            text = await socket.receive_text()
            if len(text) > MAX_MESSAGE_CHARS:
                await socket.close(code=1009, reason=f"message longer than {MAX_MESSAGE_CHARS} characters")
                return
            await socket.send_text(json.dumps(await answer(socket.app.state, text, owner=owner_of(socket))))
    except WebSocketDisconnect:
        return
    except KeyError:
        # Starlette's receive_text on a binary frame.
        await socket.close(code=1003, reason="send text frames with JSON")


def same_origin(socket: WebSocket) -> bool:
    """Browsers send Origin and let any page open a socket to localhost; programs send none."""
    origin = socket.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == socket.headers.get("host", "")


async def answer(state: Any, text: str, *, owner: str) -> dict[str, Any]:
    """The answer to one message; what goes wrong is an answer too."""
    try:
        data = json.loads(text)
        question = _questions.validate_python(data)
    except (json.JSONDecodeError, RecursionError) as error:
        return {"type": "error", "data": error_body(InvalidRequest(f"the message is not valid JSON: {error}"))["error"]}
    except ValidationError as error:
        return {"type": "error", "data": refusal_of(error, data)["error"]}
    try:
        return await _respond(state.services, state.operations, question, owner=owner)
    except PlatformError as error:
        return {"type": "error", "data": error_body(error)["error"]}


async def _respond(
    services: Services, operations: Operations, question: Ping | Metrics | Health | JobStatus, *, owner: str
) -> dict[str, Any]:
    match question:
        case Ping():
            return {"type": "pong", "data": {"timestamp": services.clock.now()}}
        case Metrics():
            return {"type": "metrics_response", "data": await operations.metrics()}
        case Health():
            return {"type": "health_response", "data": await operations.health()}
        case JobStatus():
            return {"type": "job_status_response", "data": await services.jobs.get(question.job_id, owner=owner)}
