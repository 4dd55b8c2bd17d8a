"""Puts the API together: one list of middleware, one list of routers, one way to answer errors."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import APIRouter, FastAPI
from starlette.middleware import Middleware

from chatgrpo.api import chat, conversations, jobs, models, operations, snapshots, train
from chatgrpo.api.body_limit import BodyLimit
from chatgrpo.api.errors import handle_errors
from chatgrpo.api.live import create_live_app
from chatgrpo.api.operations import Operations
from chatgrpo.api.services import Services
from chatgrpo.config import PlatformConfig
from chatgrpo.monitoring.requests import MeasureRequests, RequestMetrics, RequestTotals

ROUTERS: tuple[APIRouter, ...] = (
    train.router,
    jobs.router,
    chat.router,
    conversations.router,
    snapshots.router,
    models.router,
    operations.router,
)


def middleware_of(config: PlatformConfig, metrics: RequestMetrics) -> list[Middleware]:
    """Pure ASGI, outermost first."""
    return [Middleware(MeasureRequests, metrics=metrics), Middleware(BodyLimit, max_bytes=config.max_body_bytes)]


def create_app(services: Services) -> FastAPI:
    """The whole API over `services`, with the live socket under /ws. Needs no Ray."""
    metrics = RequestMetrics()

    async def totals() -> RequestTotals:
        return metrics.totals()

    app = FastAPI(
        title="chatgrpo",
        version=version("chatgrpo"),
        summary="Conversational agents that get better by reinforcement learning.",
        middleware=middleware_of(services.config, metrics),
    )
    app.state.services = services
    app.state.metrics = metrics
    app.state.operations = Operations(services=services, totals=totals, started_s=services.clock.monotonic())
    handle_errors(app)
    for router in ROUTERS:
        app.include_router(router)
    app.mount("/ws", create_live_app(services, app.state.operations))
    return app
