"""The servers that benchmarks/gateway.py compares: python -m benchmarks.gateway_servers bare|serve PORT HOME.

`serve` puts two applications on one Ray cluster: /bare answers at once, / is the platform's API with everything on
(keys, roles, limits, audit, metrics) whose model answers at once.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from chatgrpo.config import PlatformConfig
from chatgrpo.embedded import free_port
from chatgrpo.gateway.config import GatewayConfig, LimitRule
from chatgrpo.gateway.ingress import prepare_ingress
from chatgrpo.inference.deltas import ChatDelta
from chatgrpo.inference.engine import FinishReason, SamplingParams
from chatgrpo.messages import Message

TEXT = "Two and two make four."
# Limits that count every request and refuse none.
LIMITS = (LimitRule(name="caller", requests=10_000_000, burst=1_000_000),)


class Mock:
    """A model that answers at once."""

    async def stream(
        self, model: str, messages: Sequence[Message], params: SamplingParams
    ) -> AsyncGenerator[ChatDelta, None]:
        yield ChatDelta(
            text=TEXT, num_tokens=6, finish_reason=FinishReason.STOP, model_version=model, num_prompt_tokens=12
        )

    async def status(self) -> dict[str, Any]:
        return {"loaded_models": [], "active_requests": 0, "tokens_generated": 0}


def bare_app() -> FastAPI:
    """The least that takes and gives the same JSON."""
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def complete(body: dict[str, Any]) -> dict[str, Any]:
        message = {"role": "assistant", "content": TEXT, "refusal": None}
        return {
            "id": "chatcmpl-01JZZZZZZZZZZZZZZZZZZZZZZZ",
            "object": "chat.completion",
            "created": 1767225600,
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
            "usage": {"prompt_tokens": 12, "completion_tokens": 6, "total_tokens": 18},
            "system_fingerprint": body["model"],
        }

    return app


def platform_of(home: Path, port: int) -> PlatformConfig:
    gateway = GatewayConfig(limits=LIMITS)
    return PlatformConfig(home=home, port=port, ingress="haproxy", default_model="tiny", gateway=gateway)


def run_bare(port: int) -> None:
    import uvicorn

    uvicorn.run(bare_app(), host="127.0.0.1", port=port, log_level="warning", access_log=False)


async def make_key(platform: PlatformConfig) -> str:
    from chatgrpo.clock import SystemClock
    from chatgrpo.gateway.gateway import Gateway
    from chatgrpo.gateway.identity import LOCAL
    from chatgrpo.gateway.roles import Role

    gateway = Gateway.of(platform, routes=(), clock=SystemClock())
    key = (await gateway.keyring.create(LOCAL, name="bench", role=Role.USER)).key
    await gateway.close()
    return key


def run_serve(port: int, home: Path) -> None:
    """Says `ready KEY` once both answer, and goes on until its input is closed."""
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(home / "token"), "RAY_USAGE_STATS_ENABLED": "0"}
    (home / "token").write_text("0123456789abcdef" * 4)
    platform = platform_of(home, port)
    # Ray would make its workers nicer than the servers that they are compared with.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (its name)
    # Another HAProxy of this machine may have the usual ones.
    os.environ |= {f"RAY_SERVE_HAPROXY_{name}_PORT": str(free_port()) for name in ("METRICS", "STATS")}
    prepare_ingress(platform)
    import ray
    from ray import serve
    from ray.serve.schema import LoggingConfig

    from chatgrpo.api.app import create_app
    from chatgrpo.api.services import Services
    from chatgrpo.clock import SystemClock
    from chatgrpo.state.conversations import Conversations
    from chatgrpo.state.memory import MemoryStore
    from chatgrpo.state.tiered import TieredStore
    from tests.fake_services import FakeJobs

    key = asyncio.run(make_key(platform))

    class Bare:
        def __serve_build_asgi_app__(self) -> FastAPI:
            return bare_app()

    class Platform:
        def __serve_build_asgi_app__(self) -> FastAPI:
            conversations = Conversations(TieredStore(MemoryStore()))
            return create_app(
                Services(
                    config=platform,
                    clock=SystemClock(),
                    jobs=FakeJobs(),
                    chat=Mock(),
                    conversations=conversations,
                )
            )

    def deployed(replica: type) -> Any:
        quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
        made: Any = serve.deployment(
            serve.ingress()(replica),
            name=replica.__name__,
            max_ongoing_requests=2000,
            ray_actor_options={"num_cpus": 0},
            logging_config=quiet,
        )
        return made.bind()

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200 * 2**20)
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config=LoggingConfig(log_level="WARNING"))
    serve.run(deployed(Bare), name="bare", route_prefix="/bare")
    serve.run(deployed(Platform), name="platform", route_prefix="/")
    print(f"ready {key}", flush=True)
    sys.stdin.read()
    serve.shutdown()
    ray.shutdown()


def main(kind: str, port: int, home: Path) -> None:
    if kind == "bare":
        run_bare(port)
    else:
        run_serve(port, home)


if __name__ == "__main__":
    # Under its name: replicas get what is in `__main__` by value, and annotations would lose what they refer to.
    from benchmarks import gateway_servers

    gateway_servers.main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
