"""The model behind its circuit breaker: calls that fail before they began are made again, a model that keeps failing is
left alone, one that falls silent is given up."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from itertools import count

from chatgrpo.api.services import ChatService
from chatgrpo.errors import DeadlineExceeded, Overloaded, PlatformError, Unavailable
from chatgrpo.gateway.circuits import Admission, Circuits
from chatgrpo.inference.deltas import ChatDelta
from chatgrpo.inference.engine import SamplingParams
from chatgrpo.messages import Message
from chatgrpo.resilience.config import ResilienceConfig
from chatgrpo.resilience.deadlines import timed
from chatgrpo.resilience.retry import Failure, RetryBudget, delay_before_retry

logger = logging.getLogger(__name__)


class GuardedChat:
    """One circuit a model: a trained model that cannot be loaded stops no other."""

    def __init__(
        self,
        chat: ChatService,
        circuits: Circuits,
        *,
        config: ResilienceConfig,
        rng: random.Random | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._chat = chat
        self._circuits = circuits
        self._config = config
        self._budget = RetryBudget(config.retry)
        self._rng = rng or random.Random()
        self._sleep = sleep

    async def stream(
        self, model: str, messages: Sequence[Message], params: SamplingParams
    ) -> AsyncGenerator[ChatDelta, None]:
        """As `ChatService.stream`. Raises Unavailable while the model's circuit is open, DeadlineExceeded."""
        admission = await self._circuits.admit(f"model {model}")
        try:
            async with aclosing(self._attempts(model, messages, params)) as deltas:
                async for delta in deltas:
                    if not admission.is_settled:
                        await self._circuits.succeeded(admission)
                    yield delta
        except Exception as error:  # whatever it was, the circuit is told whose fault it was
            await self._tell(admission, error)
            raise
        finally:
            await self._circuits.abandoned(admission)

    async def _tell(self, admission: Admission, error: Exception) -> None:
        if not is_fault(error):
            return
        # One that has begun counted as good; that it broke counts as well.
        begun = admission.is_settled
        await self._circuits.failed(Admission(admission.upstream, is_probe=False) if begun else admission)

    async def _attempts(
        self, model: str, messages: Sequence[Message], params: SamplingParams
    ) -> AsyncGenerator[ChatDelta, None]:
        self._budget.called()
        has_begun = False
        for attempt in count(1):
            try:
                async with (
                    aclosing(self._chat.stream(model, messages, params)) as deltas,
                    aclosing(self._timed(deltas)) as pieces,
                ):
                    async for delta in pieces:
                        has_begun = True
                        yield delta
                return
            except Unavailable as error:
                failure = Failure(
                    attempt=attempt,
                    is_retryable=not isinstance(error, Overloaded),
                    has_begun=has_begun,
                    retry_after_s=error.retry_after_s,
                )
                delay_s = delay_before_retry(failure, self._config.retry, budget_left=self._budget.left, rng=self._rng)
                if delay_s is None:
                    raise
                self._budget.spend()
                logger.info("retry model=%s attempt=%d delay_s=%.2f cause=%s", model, attempt + 1, delay_s, error)
            await self._sleep(delay_s)

    def _timed(self, deltas: AsyncGenerator[ChatDelta, None]) -> AsyncGenerator[ChatDelta, None]:
        config = self._config
        return timed(deltas, first_s=config.first_piece_timeout_s, piece_s=config.piece_timeout_s)


def is_fault(error: Exception) -> bool:
    """Whether the upstream failed. A wrong request is its caller's fault, and being busy is nobody's."""
    if isinstance(error, Overloaded):
        return False
    return isinstance(error, Unavailable | DeadlineExceeded) or not isinstance(error, PlatformError)
