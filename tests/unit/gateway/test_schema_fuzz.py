"""Requests made from the API's own description, valid and broken ones, as every role: no answer is a server error and
none breaks the description."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from hypothesis.stateful import run_state_machine_as_test
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance

from chatgrpo.api.app import create_app
from chatgrpo.api.services import Services
from chatgrpo.config import PlatformConfig
from chatgrpo.gateway.config import GatewayConfig, ThreatConfig
from chatgrpo.gateway.identity import LOCAL
from chatgrpo.gateway.roles import Role
from chatgrpo.state.conversations import Conversations
from chatgrpo.state.memory import MemoryStore
from chatgrpo.state.tiered import TieredStore
from tests.fake_services import FakeChat, FakeJobs
from tests.fakes import FakeClock

# Otherwise the sender of so many broken requests is turned away before it has begun.
PATIENT = ThreatConfig(threshold=1e9)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    home: Path = tmp_path_factory.mktemp("home")
    jobs = FakeJobs()
    jobs.put("a", owner="local")
    services = Services(
        config=PlatformConfig(
            home=home,
            default_model="tiny",
            gateway=GatewayConfig(allowed_hosts=("*",), counters="memory", limits=(), threats=PATIENT),
        ),
        clock=FakeClock(),
        jobs=jobs,
        chat=FakeChat(),
        conversations=Conversations(TieredStore(MemoryStore()), clock=FakeClock()),
    )
    return create_app(services)


@pytest.fixture(scope="module")
def keys(app: FastAPI) -> dict[str, str]:
    async def make() -> dict[str, str]:
        keyring = app.state.gateway.keyring
        made = {role: await keyring.create(LOCAL, name=role, role=role) for role in Role}
        return {str(role): minted.key for role, minted in made.items()}

    return asyncio.run(make())


@pytest.fixture(scope="module")
def described(app: FastAPI) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_asgi("/openapi.json", app)


BOUNDED = settings(
    max_examples=3, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)


@pytest.mark.parametrize(
    ("role", "mode"),
    [(role, GenerationMode.POSITIVE) for role in ("anonymous", *Role)] + [(Role.ADMIN, GenerationMode.NEGATIVE)],
)
def test_no_request_breaks_it(
    described: schemathesis.BaseSchema, keys: dict[str, str], role: str, mode: GenerationMode
) -> None:
    headers = {"authorization": f"Bearer {keys[role]}"} if role in keys else {}

    def check(case: schemathesis.Case) -> None:
        response = case.call(headers=headers)
        case.validate_response(response, checks=[not_a_server_error, response_schema_conformance], headers=headers)

    num_operations = 0
    for found in described.get_all_operations():
        operation = found.ok()
        with suppress(Unsatisfiable):  # nothing can be wrong with a request that has no parameters
            BOUNDED(given(case=operation.as_strategy(generation_mode=mode))(check))()
        num_operations += 1
    assert num_operations > 30


@pytest.mark.parametrize("role", ["anonymous", *Role])
def test_no_chain_of_requests_breaks_it(described: schemathesis.BaseSchema, keys: dict[str, str], role: str) -> None:
    """What one answer made is read, changed and removed by the next requests, along the links of the description."""
    headers = {"authorization": f"Bearer {keys[role]}"} if role in keys else {}
    seen: set[tuple[str, int]] = set()

    class Workflow(described.as_state_machine()):  # type: ignore[misc]
        def get_call_kwargs(self, case: schemathesis.Case) -> dict[str, Any]:
            return {"headers": headers}

        def validate_response(self, response: Any, case: schemathesis.Case, **_: Any) -> None:
            seen.add((case.operation.path, response.status_code))
            case.validate_response(response, checks=[not_a_server_error, response_schema_conformance], headers=headers)

    run_state_machine_as_test(Workflow, settings=settings(BOUNDED, max_examples=6, stateful_step_count=5))
    followed = [path for path, status in seen if "{" in path and status < 300]
    assert followed or role != Role.ADMIN, seen
