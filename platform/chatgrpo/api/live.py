"""Questions and news over one open socket: `/ws/v2`. Its own application, so that long-lived sockets never take a
request slot from the API.

    {"type": "ping"}                              -> {"type": "pong", "data": {...}}
    {"type": "metrics"}                           -> {"type": "metrics_response", "data": {...}}
    {"type": "health"}                            -> {"type": "health_response", "data": {...}}
    {"type": "job_status", "job_id": "..."}       -> {"type": "job_status_response", "data": {...}}
    {"type": "subscribe", "topics": ["metrics", "alerts", "job:ID"], "last_event_id": null}
                                                  -> {"type": "subscribed", "data": {"topics", "resumed", ...}}, then
                                                     {"type": "event", "topic", "id", "snapshot", "data": {...}} ...
    {"type": "unsubscribe", "topics": [...]}      -> {"type": "unsubscribed", "data": {"topics"}}
    anything else                                 -> {"type": "error", "data": {"code", "message", ...}}

Who comes back subscribes with the id of the last event that he saw: `resumed` means that what he missed follows; else
snapshots do. Browsers, which cannot send headers here, give their key as a subprotocol: `chatgrpo.key.<key>` beside
`chatgrpo.v2`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, FastAPI, WebSocket, WebSocketDisconnect
from pydantic import ValidationError
from starlette.middleware import Middleware
from starlette.types import Lifespan
from starlette.websockets import WebSocketDisconnected

from chatgrpo.api import live_events, telemetry
from chatgrpo.api.errors import error_body, handle_errors, refusal_of
from chatgrpo.api.identity import owner_of
from chatgrpo.api.live_hub import LiveHub
from chatgrpo.api.live_messages import (
    MAX_TOPICS_A_READER,
    Health,
    JobStatus,
    Metrics,
    Ping,
    Question,
    Subscribe,
    Unsubscribe,
    questions,
)
from chatgrpo.api.live_reader import SocketReader
from chatgrpo.api.live_sources import admit, source_of
from chatgrpo.api.operations import Operations
from chatgrpo.api.services import Services
from chatgrpo.errors import InvalidRequest, PlatformError
from chatgrpo.gateway.hosts import is_foreign

router = APIRouter()

# No question is longer; a longer message is a mistake or an attack.
MAX_MESSAGE_CHARS = 64 * 1024
SUBPROTOCOL = "chatgrpo.v2"


def create_live_app(
    services: Services,
    operations: Operations,
    *,
    middleware: Sequence[Middleware] = (),
    lifespan: Lifespan[FastAPI] | None = None,
) -> FastAPI:
    """The application to mount under `/ws`. Where nothing in front of it keeps the door, `middleware` must: that of
    the gateway. `lifespan` is run where it is not mounted."""
    app = FastAPI(
        title="chatgrpo live",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        middleware=list(middleware),
        lifespan=lifespan,
        telemetry=telemetry.NONE,
    )
    app.state.services = services
    app.state.operations = operations
    app.state.hub = LiveHub(partial(source_of, services=services, operations=operations))
    handle_errors(app)
    app.include_router(router)
    app.include_router(live_events.router)
    return app


@router.websocket("/v2")
async def live(socket: WebSocket) -> None:
    """Answers questions in order, and tells what was subscribed to, until the client leaves."""
    if not same_origin(socket):
        # Before accept: the handshake is answered with 403, and a foreign page learns nothing.
        await socket.close(code=1008, reason="this page's origin is not the platform's")
        return
    await socket.accept(subprotocol=SUBPROTOCOL if SUBPROTOCOL in socket.scope.get("subprotocols", ()) else None)
    with SocketReader(socket, owner_of(socket)) as reader:
        try:
            await _converse(socket, reader)
        except asyncio.CancelledError:
            if not reader.was_dropped:
                raise
            task = asyncio.current_task()
            assert task is not None, "sockets are served in tasks"
            task.uncancel()
        finally:
            socket.app.state.hub.unsubscribe(reader, list(reader.topics))


async def _converse(socket: WebSocket, reader: SocketReader) -> None:
    try:
        while True:
            text = await socket.receive_text()
            if len(text) > MAX_MESSAGE_CHARS:
                await socket.close(code=1009, reason=f"message longer than {MAX_MESSAGE_CHARS} characters")
                return
            for said in await answer(socket.app.state, text, reader):
                reader.offer(said)
    except (WebSocketDisconnect, WebSocketDisconnected):
        # Also when it was found to be gone while something was written to it.
        return
    except KeyError:
        # Starlette's receive_text on a binary frame.
        await socket.close(code=1003, reason="send text frames with JSON")


def same_origin(socket: WebSocket) -> bool:
    """Browsers send Origin and let any page open a socket to localhost; programs send none."""
    named = frozenset(name.lower() for name in socket.app.state.services.config.gateway.allowed_hosts)
    return not is_foreign(socket.headers.get("origin"), socket.headers.get("host", ""), named)


async def answer(state: Any, text: str, reader: SocketReader) -> list[str]:
    """What one message leads to; what goes wrong is an answer too."""
    try:
        data = json.loads(text)
        question = questions.validate_python(data)
    except (json.JSONDecodeError, RecursionError) as error:
        return [_error(error_body(InvalidRequest(f"the message is not valid JSON: {error}"))["error"])]
    except ValidationError as error:
        return [_error(refusal_of(error, data)["error"])]
    try:
        return await _respond(state, question, reader)
    except PlatformError as error:
        return [_error(error_body(error)["error"])]


async def _respond(state: Any, question: Question, reader: SocketReader) -> list[str]:
    services, operations = state.services, state.operations
    match question:
        case Ping():
            return [_said("pong", {"timestamp": services.clock.now()})]
        case Metrics():
            return [_said("metrics_response", await operations.metrics())]
        case Health():
            return [_said("health_response", await operations.health())]
        case JobStatus():
            return [_said("job_status_response", await services.jobs.get(question.job_id, owner=reader.owner))]
        case Subscribe():
            return await _subscribe(state, question, reader)
        case Unsubscribe():
            state.hub.unsubscribe(reader, question.topics)
            reader.topics = {topic: None for topic in reader.topics if topic not in question.topics}
            return [_said("unsubscribed", {"topics": list(reader.topics)})]


async def _subscribe(state: Any, question: Subscribe, reader: SocketReader) -> list[str]:
    if len(reader.topics | dict.fromkeys(question.topics)) > MAX_TOPICS_A_READER:
        raise InvalidRequest(f"a socket can have {MAX_TOPICS_A_READER} topics; open another one", "topics")
    for topic in question.topics:
        await admit(topic, state.services, owner=reader.owner)
    begun = await state.hub.subscribe(reader, question.topics, question.last_event_id)
    reader.topics |= dict.fromkeys(question.topics)
    told = {"topics": list(reader.topics), "resumed": begun.resumed, "last_event_id": begun.last_event_id}
    return [_said("subscribed", told), *begun.events]


def _said(kind: str, data: Any) -> str:
    return json.dumps({"type": kind, "data": data})


def _error(data: Any) -> str:
    return _said("error", data)
