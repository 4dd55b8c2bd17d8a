"""FastAPI runs what is no coroutine in a thread, which costs more than all else that a request costs here."""

from __future__ import annotations

from inspect import iscoroutinefunction

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from chatgrpo.api.app import ROUTERS


def calls(dependant: Dependant) -> list[object]:
    return [dependant.call, *(call for inner in dependant.dependencies for call in calls(inner))]


def test_no_handler_and_no_dependency_needs_a_thread(app: FastAPI) -> None:
    routes = [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]
    assert len(routes) > 40
    for route in routes:
        blocking = [call for call in calls(route.dependant) if not iscoroutinefunction(call)]
        assert not blocking, (route.path, blocking)
