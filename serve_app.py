"""Puts the platform on a Ray cluster: builds the Serve applications, starts what they rest on.

    serve run serve_app:app                        # the whole API on http://127.0.0.1:8002
    serve run configs/serve.yaml                   # the API, and the live socket as an application of its own
    chatgrpo serve                                 # the same, from the command line of the package

Without RAY_ADDRESS a Ray cluster of this machine alone is started (embedded mode).
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve import Deployment
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from actors.agent_port import any_agent_port
from actors.chat_model import MAX_ONGOING, ChatClient, ChatModel
from actors.conversation_store import ConversationClient, start_conversation_shards
from actors.job_scheduler import JobClient, start_job_scheduler
from actors.metrics_hub import MonitorClient, start_metrics_hub
from actors.names import NAMESPACE
from actors.reporting import report_process
from actors.scaling import ScaleClient
from actors.scaling_policy import POLICY
from chatgrpo.api.app import create_app, gateway_of
from chatgrpo.api.live import create_live_app
from chatgrpo.api.operations import Operations
from chatgrpo.api.services import Services
from chatgrpo.clock import SystemClock
from chatgrpo.config import PlatformConfig, load_platform_config, load_yaml
from chatgrpo.gateway.exposure import refuse_open_door
from chatgrpo.gateway.ingress import is_haproxy
from chatgrpo.jobs.config import JobsConfig
from chatgrpo.monitoring.merging import rows_of
from chatgrpo.monitoring.process import observe_process
from chatgrpo.monitoring.requests import RequestTotals

logger = logging.getLogger(__name__)

API_APP = "api"
LIVE_APP = "live"

# Weights are read from disk by the process that needs them; only small messages go through the object store.
_OBJECT_STORE_BYTES = 200 * 2**20
# When replicas become fewer, replies under way have so long to end.
_FINISH_S = 30.0


def services_of(platform: PlatformConfig, chat: DeploymentHandle[Any]) -> Services:
    return Services(
        config=platform,
        clock=SystemClock(),
        jobs=JobClient(),
        chat=ChatClient(chat),
        conversations=ConversationClient(),
        monitor=MonitorClient(),
        scaling=ScaleClient(),
    )


@serve.ingress()
class Api:
    """The HTTP API in a replica."""

    def __init__(self, platform: PlatformConfig, chat: DeploymentHandle[Any]) -> None:
        observe_process(platform, "api")
        self._services = services_of(platform, chat)

    def __serve_build_asgi_app__(self) -> FastAPI:
        self._app = create_app(self._services)
        return self._app

    async def totals(self) -> RequestTotals:
        """This replica's request counts, for the live application."""
        return self._app.state.metrics.totals()  # type: ignore[no-any-return]


@serve.ingress()
class Live:
    """The live socket in a replica. Talks to the deployments of the application named `api_app`."""

    def __init__(self, platform: PlatformConfig, api_app: str) -> None:
        observe_process(platform, "live")
        self._api = serve.get_deployment_handle("Api", api_app)
        self._services = services_of(platform, serve.get_deployment_handle("ChatModel", api_app))

    def __serve_build_asgi_app__(self) -> FastAPI:
        async def totals() -> RequestTotals:
            return await self._api.totals.remote()  # type: ignore[no-any-return]

        started_s = self._services.clock.monotonic()
        operations = Operations(services=self._services, totals=totals, started_s=started_s)
        gateway = gateway_of(self._services)

        @asynccontextmanager
        async def reporting(_: FastAPI) -> AsyncIterator[None]:
            task = report_process(lambda: rows_of(gateway.metrics.registry) if gateway.metrics else [])
            yield
            task.cancel()
            await gateway.close()

        return create_live_app(self._services, operations, middleware=gateway.middleware(), lifespan=reporting)


def build_api(platform: PlatformConfig) -> serve.Application:
    """The API and the models behind it."""
    chat = _deployment(
        ChatModel,
        max_ongoing_requests=MAX_ONGOING,
        max_queued_requests=512,
        request_router_config=RequestRouterConfig(
            request_router_class="actors.replica_routers.ReplicaRouter",
            request_router_kwargs={"strategy": str(platform.gateway.balancing)},
            request_routing_stats_period_s=2.0,
        ),
        ray_actor_options={"runtime_env": {"env_vars": _thread_env(platform.chat_threads)}},
        graceful_shutdown_timeout_s=_FINISH_S,
        **_scaling(platform, least=platform.advice.min_replicas),
    ).bind(platform)
    api = _deployment(Api, max_ongoing_requests=1000, graceful_shutdown_timeout_s=_FINISH_S, **_scaling(platform))
    return api.bind(platform, chat)


def build_live(platform: PlatformConfig, api_app: str = API_APP) -> serve.Application:
    """Sockets stay open for hours and each takes one of `max_ongoing_requests`: hence an application of their own."""
    return _deployment(Live, max_ongoing_requests=10_000).bind(platform, api_app)


def _deployment(replica: type, *, ray_actor_options: Mapping[str, Any] | None = None, **options: Any) -> Deployment:
    """No replica reserves logical CPUs: on a laptop they belong to training. `configs/serve.yaml` can say otherwise."""
    made: Any = serve.deployment(
        replica,
        name=replica.__name__,
        ray_actor_options={"num_cpus": 0, **(ray_actor_options or {})},
        logging_config=LoggingConfig(log_level="WARNING"),
        **({"graceful_shutdown_timeout_s": 5.0} | options),
    )
    return cast(Deployment, made)


def _scaling(platform: PlatformConfig, *, least: int = 1) -> dict[str, Any]:
    """Serve's autoscaling on what operators order and, where that is to be applied, on the platform's own advice."""
    bounds = {"min_replicas": least, "max_replicas": platform.advice.max_replicas}
    # Orders are carried out at once, and the policy itself waits where advice is to be waited with.
    at_once = {"upscale_delay_s": 0.0, "downscale_delay_s": 0.0}
    policy = AutoscalingPolicy(policy_function=POLICY)
    return {"autoscaling_config": AutoscalingConfig(**bounds, **at_once, policy=policy)}


def _thread_env(num_threads: int) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(num_threads), "OMP_WAIT_POLICY": "PASSIVE"}


def app(args: dict[str, str]) -> serve.Application:
    """For `serve run serve_app:app [config=configs/platform.yaml]` and `configs/serve.yaml`."""
    platform = load_platform_config(args.get("config"))
    start_platform(platform)
    return build_api(platform)


def live(args: dict[str, str]) -> serve.Application:
    """For `configs/serve.yaml`; `api_app` is the name of the application that `app` builds there."""
    return build_live(load_platform_config(args.get("config")), args.get("api_app", API_APP))


def start_platform(platform: PlatformConfig) -> None:
    """Ray, Serve's proxy, the job scheduler and the conversation store, each unless it runs already. Raises
    InvalidRequest when the platform would be open to other machines."""
    # Behind HAProxy the ports of the replicas are open to other machines, wherever HAProxy itself listens.
    refuse_open_door("0.0.0.0" if is_haproxy(os.environ) else platform.host, platform=platform)  # noqa: S104
    if not ray.is_initialized():
        _start_ray(platform)
    serve.start(
        proxy_location="HeadOnly" if _is_embedded() else "EveryNode",
        http_options={"host": platform.host, "port": platform.port},
        logging_config=LoggingConfig(log_level="WARNING"),
    )
    # Where Serve ran before, it listens where somebody else told it to.
    client = serve.context._get_global_client()
    assert client is not None, "serve.start has just made it"
    refuse_open_door(client.http_config.host, platform=platform)
    # Waited for: a scheduler that cannot start (a store that is not one, a broken plug-in) must say so now.
    ray.get(start_job_scheduler(platform, _jobs_config(platform)).pid.remote())
    start_conversation_shards(platform)
    start_metrics_hub(platform)


def _is_embedded() -> bool:
    return "RAY_ADDRESS" not in os.environ


def _start_ray(platform: PlatformConfig) -> None:
    # Idle torch threads sleep instead of spinning: chat and training share the cores of a laptop.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not _is_embedded():
        ray.init(namespace=NAMESPACE, log_to_driver=False)
        return
    # RAY_AUTH_MODE is left to ray.init, which sets it to "token": Ray reads it once, at its own import, and `serve run`
    # imports Ray before this file.
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(_token_file(platform.home))
    with any_agent_port():
        ray.init(
            "local",
            namespace=NAMESPACE,
            # The true number of cores: nothing of the platform reserves any, so all are there for training, and what
            # the scheduler says about free resources is so.
            num_cpus=os.cpu_count(),
            object_store_memory=_OBJECT_STORE_BYTES,
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            log_to_driver=False,
            logging_level=logging.ERROR,
        )


def _token_file(home: Path) -> Path:
    """What lets a process into the embedded cluster. Made once, readable by its owner alone: without it any user of
    this machine could run code through Ray's ports."""
    path = home / "ray_token"
    if not path.exists():
        home.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    return path


def _jobs_config(platform: PlatformConfig) -> JobsConfig:
    return JobsConfig(**load_yaml(platform.jobs_config)) if platform.jobs_config else JobsConfig()


def start(platform: PlatformConfig) -> None:
    """Both applications, ready for requests when this returns."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    start_platform(platform)
    serve.run(build_api(platform), name=API_APP, route_prefix="/")
    serve.run(build_live(platform), name=LIVE_APP, route_prefix="/ws")


def stop() -> None:
    """In embedded mode everything goes, running jobs included; they continue at the next start. On a shared cluster
    only the HTTP side goes."""
    if not ray.is_initialized():
        return
    if _is_embedded():
        serve.shutdown()  # type: ignore[no-untyped-call]
    else:
        serve.delete(LIVE_APP)
        serve.delete(API_APP)
    ray.shutdown()


def serve_until_stopped(platform: PlatformConfig, on_ready: Callable[[], None]) -> None:
    """Runs the platform until Ctrl-C or SIGTERM; `on_ready()` is called when it answers."""
    asked_to_stop = threading.Event()
    try:
        start(platform)
        # Only now: Ray puts handlers of its own in place when it starts, and its SIGTERM ends the process at once.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: asked_to_stop.set())
        on_ready()
        asked_to_stop.wait()
    finally:
        stop()
