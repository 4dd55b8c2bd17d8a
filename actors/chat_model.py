"""The model deployment: a ChatRunner in a replica, and the client through which the API talks to it."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Any, cast

import psutil
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from actors.reporting import report_process
from chatgrpo.config import PlatformConfig
from chatgrpo.errors import Overloaded, PlatformError, Unavailable
from chatgrpo.inference import models
from chatgrpo.inference.chat_runner import ChatRunner
from chatgrpo.inference.deltas import ChatDelta
from chatgrpo.inference.engine import SamplingParams
from chatgrpo.messages import Message
from chatgrpo.monitoring.catalog import MODEL_REPLICAS
from chatgrpo.monitoring.history import Row
from chatgrpo.monitoring.process import observe_process
from chatgrpo.monitoring.samples import of_chat
from chatgrpo.monitoring.tracing import carrier, stream_span
from chatgrpo.monitoring.usage import cache_rows

if TYPE_CHECKING:
    from chatgrpo.inference.speakers import Speakers

logger = logging.getLogger(__name__)

# As many as one engine decodes at once; more wait in line, and beyond that are told to come back.
MAX_ONGOING = 64


def speakers(platform: PlatformConfig) -> Speakers:
    """Loads models by name, on the GPU if the replica has one."""
    if platform.chat_engine == "vllm":
        from chatgrpo.inference.vllm_speakers import VllmSpeakers

        return VllmSpeakers(
            platform.vllm,
            models_dir=platform.models_dir,
            runs_dir=platform.runs_dir,
            num_adapters=platform.max_adapters_per_replica,
        )
    import torch

    from chatgrpo.inference.speakers import Speakers

    on_gpu = torch.cuda.is_available()
    return Speakers(
        models_dir=platform.models_dir,
        runs_dir=platform.runs_dir,
        dtype=torch.bfloat16 if on_gpu and torch.cuda.is_bf16_supported() else torch.float32,
        device="cuda" if on_gpu else "cpu",
        prefix_bytes=platform.chat_prefix_mb * 1_000_000,
    )


def memory_shares() -> list[float]:
    """How full (0 to 1) the memory of this machine is, and that of its GPU if it has one."""
    import torch

    shares = [psutil.virtual_memory().percent / 100]
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        shares.append(1 - free / total)
    return shares


class ChatModel:
    """One replica: several loaded models, one thread, one batch a model."""

    async def __init__(self, platform: PlatformConfig) -> None:  # type: ignore[misc]  # Serve awaits it
        import torch

        observe_process(platform, "model")
        # Of this node, not of the one where the settings were read.
        self._weight = float(os.environ.get("CHATGRPO_CHAT_WEIGHT", platform.chat_weight))
        torch.set_num_threads(platform.chat_threads)
        # A default model that cannot be had fails the deployment; loading it must not hold up the API.
        models.check_available(platform.default_model, runs_dir=platform.runs_dir)
        loader = speakers(platform)
        self._runner = ChatRunner(
            loader.load,
            max_models=platform.max_models_per_replica,
            max_adapters=platform.max_adapters_per_replica,
            base_of=loader.base_of,
            revision=loader.revision,
        )
        self._reporting = report_process(self._rows)
        self._preload = asyncio.get_running_loop().create_task(self._runner.preload(platform.default_model))

    async def stream(
        self, model: str, messages: Sequence[Message], params: SamplingParams, trace: dict[str, str] | None = None
    ) -> AsyncGenerator[ChatDelta, None]:
        with stream_span("model.generate", component="model", parent=trace):
            async for delta in self._runner.stream(model, messages, params):
                yield delta

    async def status(self) -> dict[str, Any]:
        return self._runner.status() | {"reports_itself": True}

    def _rows(self) -> list[Row]:
        runner = self._runner
        return [
            (MODEL_REPLICAS.sample_name, {}, 1.0),
            *(sample.row for sample in of_chat(runner.status())),
            *cache_rows("model", num_hits=runner.num_hits, num_misses=runner.num_misses),
        ]

    async def record_routing_stats(self) -> dict[str, float]:
        """Serve hands it to every router: what balancing goes by."""
        share_of_batch = self._runner.status()["active_requests"] / MAX_ONGOING
        return {"weight": self._weight, "load": max(share_of_batch, *memory_shares())}

    def __del__(self) -> None:
        # Serve calls it when the replica shuts down; absent when the constructor failed.
        if runner := getattr(self, "_runner", None):
            runner.close()


class ChatClient:
    """ChatService over the deployment's handle. Errors of the platform arrive as themselves."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    async def stream(
        self, model: str, messages: Sequence[Message], params: SamplingParams
    ) -> AsyncGenerator[ChatDelta, None]:
        call = self._handle.options(stream=True).stream.remote(model, tuple(messages), params, carrier())
        deltas = cast("DeploymentResponseGenerator[ChatDelta]", call)
        try:
            async for delta in deltas:
                yield delta
        except (RayError, RayServeException) as error:
            raise translated(error) from error
        finally:
            # Of no effect on a reply that is complete; takes any other out of its batch.
            deltas.cancel()  # type: ignore[no-untyped-call]

    async def status(self) -> dict[str, Any]:
        try:
            return await self._handle.status.remote()  # type: ignore[no-any-return]
        except (RayError, RayServeException) as error:
            raise translated(error) from error


def translated(error: Exception) -> Exception:
    """What a caller of the platform is told about an error of Ray; itself when the fault is in our code."""
    if isinstance(error, RayTaskError):
        return error.cause if isinstance(error.cause, PlatformError) else error
    if isinstance(error, BackPressureError):
        return Overloaded("all chat replicas are busy and their queues are full; try again", retry_after_s=2.0)
    if isinstance(error, RayActorError | DeploymentUnavailableError):
        return Unavailable("the chat model is being restarted; try again in a moment", retry_after_s=2.0)
    return error
