"""The one named actor that merges what all processes report, looks at the alert rules and tells people."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, cast

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.names import METRICS_HUB, NAMESPACE
from actors.ray_metrics import RayMetrics
from actors.scaling_policy import say_advised
from chatgrpo.clock import SystemClock
from chatgrpo.config import PlatformConfig
from chatgrpo.errors import PlatformError, Unavailable
from chatgrpo.monitoring.advisor import Advisor
from chatgrpo.monitoring.alert_config import load_alerts
from chatgrpo.monitoring.history import Row
from chatgrpo.monitoring.load_log import LoadLog
from chatgrpo.monitoring.monitor import Monitor
from chatgrpo.monitoring.notify import Notifier
from chatgrpo.monitoring.process import observe_process
from chatgrpo.monitoring.silence_file import SilenceFile

logger = logging.getLogger(__name__)

Json = dict[str, Any]


class MetricsHub:
    """Monitor plus a tick loop, in an actor. It forgets its history when it restarts: alerts that still hold fire
    again after their time. Silences are in a file under `home`, so the actor stays on the head node."""

    async def __init__(self, platform: PlatformConfig) -> None:  # type: ignore[misc]  # Ray awaits it
        observe_process(platform, "hub")
        config, clock = load_alerts(platform.alerts_config), SystemClock()
        silences = SilenceFile(platform.home / "silences.json")
        advisor = Advisor(platform.advice, LoadLog(platform.home / "load.jsonl"))
        notify = Notifier(config.handlers, clock=clock)
        self._monitor = Monitor(
            config, clock=clock, notify=notify, tick_on_report=False, silence_file=silences, advisor=advisor
        )
        self._ray_metrics = RayMetrics()
        self._tick_s = config.tick_s
        self._loop = asyncio.get_running_loop().create_task(self._tick_forever())

    async def ask(self, method: str, args: tuple[Any, ...], options: Mapping[str, Any]) -> Any:
        """A method of MonitorService."""
        return await getattr(self._monitor, method)(*args, **options)

    async def _tick_forever(self) -> None:
        while True:
            try:
                self._ray_metrics.show(await self._monitor.tick())
                if self._monitor.advisor.config.apply:
                    say_advised(self._monitor.advisor.advice)
            except Exception:
                # A rule that cannot be looked at must not silence all others for good.
                logger.exception("tick failed")
            await asyncio.sleep(self._tick_s)


def start_metrics_hub(platform: PlatformConfig) -> Any:
    """The hub's handle; the actor is made on this node unless it runs already."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return (
        ray.remote(MetricsHub)
        .options(
            name=METRICS_HUB,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            num_cpus=0,
            max_concurrency=1000,
            scheduling_strategy=here,
        )
        .remote(platform)
    )


class MonitorClient:
    """MonitorService over the actor. Errors of the platform arrive as themselves."""

    async def report(self, source: str, rows: Sequence[Row]) -> None:
        await self._ask("report", source, rows)

    async def rows(self) -> list[Row]:
        return cast(list[Row], await self._ask("rows"))

    async def advice(self) -> Json:
        return cast(Json, await self._ask("advice"))

    async def alerts(self) -> list[Json]:
        return cast(list[Json], await self._ask("alerts"))

    async def silence(
        self, *, rule: str | None, labels: Mapping[str, str], seconds: float, by: str, reason: str
    ) -> Json:
        made = await self._ask("silence", rule=rule, labels=dict(labels), seconds=seconds, by=by, reason=reason)
        return cast(Json, made)

    async def silences(self) -> list[Json]:
        return cast(list[Json], await self._ask("silences"))

    async def unsilence(self, silence_id: str) -> None:
        await self._ask("unsilence", silence_id)

    async def _ask(self, method: str, *args: Any, **options: Any) -> Any:
        try:
            hub = ray.get_actor(METRICS_HUB, namespace=NAMESPACE)
            return await hub.ask.remote(method, args, options)
        except RayTaskError as error:
            if isinstance(error.cause, PlatformError):
                raise error.cause from None
            raise
        except (RayActorError, ValueError) as error:
            raise Unavailable("the metrics hub does not answer; try again in a moment") from error
