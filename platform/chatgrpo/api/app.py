"""Puts the API together: one list of middleware, one list of routers, one way to answer errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version

from fastapi import APIRouter, FastAPI
from starlette.middleware import Middleware

from chatgrpo.api import (
    advice,
    alerts,
    audit,
    chat,
    conversations,
    jobs,
    keys,
    models,
    old_train,
    openai,
    operations,
    scaling,
    snapshots,
    sweeps,
    telemetry,
    train,
)
from chatgrpo.api.body_limit import BodyLimit
from chatgrpo.api.cached_chat import CachedChat
from chatgrpo.api.compression import Gzip
from chatgrpo.api.dashboard.site import add_dashboard
from chatgrpo.api.description import describe
from chatgrpo.api.direct import Direct
from chatgrpo.api.errors import handle_errors
from chatgrpo.api.guarded_chat import GuardedChat
from chatgrpo.api.live import create_live_app
from chatgrpo.api.openai_conversations import router as openai_conversations
from chatgrpo.api.operations import Operations
from chatgrpo.api.reference_pages import add_reference_pages
from chatgrpo.api.replies import Replies
from chatgrpo.api.route_table import ROUTES
from chatgrpo.api.services import ChatService, Services
from chatgrpo.gateway.gateway import Gateway
from chatgrpo.monitoring.reporter import report_forever
from chatgrpo.monitoring.requests import MeasureQueue, RequestTotals

# Below, a packet is sent either way.
GZIP_FROM_BYTES = 1400

# The most frequent first: routers are asked in this order.
ROUTERS: tuple[APIRouter, ...] = (
    openai.router,
    chat.router,
    openai_conversations,
    train.router,
    jobs.router,
    sweeps.router,
    conversations.router,
    snapshots.router,
    models.router,
    keys.router,
    audit.router,
    operations.router,
    scaling.router,
    advice.router,
    alerts.router,
    old_train.router,
)


def gateway_of(services: Services) -> Gateway:
    """The gateway of one process, with the row of every route."""
    return Gateway.of(services.config, routes=ROUTES, clock=services.clock)


def replies_over(chat: ChatService, gateway: Gateway) -> Replies:
    """What models say, guarded as the gateway's settings tell."""
    config = gateway.config.resilience
    guarded = GuardedChat(chat, gateway.circuits, config=config)
    return Replies(CachedChat(guarded, gateway.replies), gateway.ladder, config=config)


def create_app(services: Services) -> FastAPI:
    """The whole API over `services`, with the live socket under /ws. Needs no Ray."""
    gateway = gateway_of(services)
    metrics = gateway.metrics
    assert metrics is not None, "the platform's gateway counts"

    async def totals() -> RequestTotals:
        return metrics.totals()

    @asynccontextmanager
    async def closing(_: FastAPI) -> AsyncIterator[None]:
        reporting = asyncio.create_task(
            report_forever(services.monitor, partial(app.state.operations.rows, metrics.registry))
        )
        yield
        reporting.cancel()
        await asyncio.wait({reporting})
        await gateway.close()

    innermost = (
        Middleware(BodyLimit, max_bytes=services.config.max_body_bytes),
        Middleware(MeasureQueue, metrics=metrics),
        Middleware(Direct, routes={"/v1/chat/completions": openai.DIRECT}),
    )
    app = FastAPI(
        title="chatgrpo",
        version=version("chatgrpo"),
        summary="Conversational agents that get better by reinforcement learning.",
        # Outside of everything, so that the cache holds answers as they are; event streams are left alone.
        middleware=[Middleware(Gzip, minimum_size=GZIP_FROM_BYTES), *gateway.middleware(), *innermost],
        lifespan=closing,
        docs_url=None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        telemetry=telemetry.NONE,
    )
    app.state.services = services
    app.state.metrics = metrics
    app.state.gateway = gateway
    app.state.replies = replies_over(services.chat, gateway)
    app.state.operations = Operations(services=services, totals=totals, started_s=services.clock.monotonic())
    handle_errors(app)
    for router in ROUTERS:
        app.include_router(router)
    add_dashboard(app)
    add_reference_pages(app)
    describe(app, gateway.table)
    app.mount("/ws", create_live_app(services, app.state.operations))
    return app
