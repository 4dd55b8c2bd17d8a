"""Lets several loaded models speak to many people at once, from one background thread.

Requests are added to their model's engine as they come and leave it as they finish (continuous batching, see
`engine_thread`). The event loop keeps the books: which models are loaded, who uses them, which one has to go (the least
recently used that nobody uses).

Adapters share the engine of their base, so that their requests are one batch. When an adapter is published again, the
next request loads the new version; replies that are being written end with the one they began with.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Protocol

from chatgrpo.errors import InvalidRequest, Unavailable
from chatgrpo.inference.deltas import ChatDelta, TextStream, TokenLogprob
from chatgrpo.inference.engine import Engine, FinishReason, GenerationRequest, SamplingParams, TokenEvent
from chatgrpo.inference.engine_thread import Add, Cancel, EngineThread, Reply
from chatgrpo.messages import Message, Role

logger = logging.getLogger(__name__)


class Template(Protocol):
    """What is asked of a chat template (see `ChatTemplate`)."""

    @property
    def eos_ids(self) -> frozenset[int]: ...

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Speaker:
    """A model that is ready to speak. `context_window`: most tokens of prompt and reply together. The engine is only
    touched by the runner's thread, which calls `attach` before the first request and `detach` after the last.
    `adapter`: by what name the engine knows it, when it is one. `holds`: what must live as long as the speaker."""

    engine: Engine
    template: Template
    context_window: int
    version: str
    adapter: str | None = None
    attach: Callable[[], None] | None = None
    detach: Callable[[], None] | None = None
    holds: object = None


@dataclass(slots=True)
class _Loaded:
    """`base`: the model whose weights it speaks with, itself when it is no adapter. `replaced` by a newer version."""

    speaker: Speaker
    base: str
    revision: str | None
    num_users: int = 0
    replaced: bool = False


def _none(name: str) -> str | None:
    return None


class ChatRunner:
    """`load(name)` makes a Speaker; it blocks, is called in a worker thread, and raises PlatformError for a model that
    cannot be had. `base_of(name)` says on whose weights an adapter goes, None for a whole model; it blocks as well.
    `revision(name)` is looked at for every request: when it changes, the model is loaded again.

    At most `max_models` whole models stay loaded, and `max_adapters` adapters on them; a request for one more waits up
    to `room_timeout_s` until one is idle. All methods belong to one event loop."""

    def __init__(
        self,
        load: Callable[[str], Speaker],
        *,
        max_models: int,
        max_adapters: int = 16,
        base_of: Callable[[str], str | None] = _none,
        revision: Callable[[str], str | None] = _none,
        room_timeout_s: float = 30.0,
    ) -> None:
        self._load, self._base_of, self._revision = load, base_of, revision
        self._max_models, self._max_adapters = max_models, max_adapters
        self._room_timeout_s = room_timeout_s
        self._loaded: OrderedDict[str, _Loaded] = OrderedDict()
        self._changed = asyncio.Condition()
        self._one_load = asyncio.Lock()
        self._loads: dict[str, asyncio.Task[None]] = {}
        self._ids = count()
        self._num_active = 0
        self._num_tokens = 0
        # Looks for a loaded model, which is a cache of what is on disk.
        self.num_hits = self.num_misses = 0
        self._thread = EngineThread()

    async def preload(self, model: str) -> None:
        """Makes `model` ready before the first request asks for it."""
        async with self._speaker(model):
            pass

    async def stream(
        self, model: str, messages: Sequence[Message], params: SamplingParams
    ) -> AsyncGenerator[ChatDelta, None]:
        """The reply, piece by piece; closing the iterator takes the request out of the batch. Old turns are left out
        of the prompt as far as the context window demands. Raises InvalidRequest when the newest message alone does
        not fit, and what `load` raises."""
        async with self._speaker(model) as speaker:
            prompt = fit_prompt(speaker, messages, max_tokens=params.max_tokens, tools=params.tools)
            request = GenerationRequest(
                request_id=f"chat-{next(self._ids)}",
                prompt_ids=tuple(prompt),
                params=replace(params, stop=()),
                adapter=speaker.adapter,
            )
            reply = Reply()
            self._num_active += 1
            self._thread.add(Add(speaker.engine, request, reply, asyncio.get_running_loop()))
            try:
                async for delta in self._deltas(speaker, reply, params, num_prompt_tokens=len(prompt)):
                    yield delta
            finally:
                self._num_active -= 1
                # Unknown to the engine when the reply is complete, which is allowed.
                self._thread.cancel(Cancel(speaker.engine, request.request_id))

    def status(self) -> dict[str, Any]:
        return {
            "loaded_models": list(self._loaded),
            "active_requests": self._num_active,
            "tokens_generated": self._num_tokens,
        }

    def close(self) -> None:
        """Ends the thread; replies that are being written end with Unavailable."""
        self._thread.close()

    async def _deltas(
        self, speaker: Speaker, reply: Reply, params: SamplingParams, *, num_prompt_tokens: int
    ) -> AsyncGenerator[ChatDelta, None]:
        text = TextStream(speaker.template.decode, stop=params.stop)
        num_tokens = 0
        logprobs: list[TokenLogprob] = []
        while True:
            events = await self._next_events(reply)
            self._num_tokens += len(events)
            num_tokens += len(events)
            reason = events[-1].finish_reason
            spoken = [event for event in events if event.token_id not in speaker.template.eos_ids]
            piece = text.push([event.token_id for event in spoken])
            if params.logprobs:
                logprobs += [TokenLogprob(speaker.template.decode([e.token_id]), e.logprob) for e in spoken]
            if text.stopped:
                reason = FinishReason.STOP
            elif reason is not None:
                piece += text.finish()
            if piece or reason is not None:
                yield ChatDelta(
                    text=piece,
                    num_tokens=num_tokens,
                    finish_reason=reason,
                    model_version=speaker.version,
                    num_prompt_tokens=num_prompt_tokens,
                    logprobs=tuple(logprobs),
                )
                num_tokens, logprobs = 0, []
            if reason is not None:
                return

    async def _next_events(self, reply: Reply) -> list[TokenEvent]:
        """Everything that was sampled since the last call: a slow reader gets fewer, larger pieces."""
        events: list[TokenEvent] = []
        while not events or not reply.events.empty():
            item = await reply.events.get()
            if isinstance(item, Exception):
                raise item
            events += item
        return events

    @asynccontextmanager
    async def _speaker(self, model: str) -> AsyncIterator[Speaker]:
        loaded = await self._acquire(model)
        try:
            yield loaded.speaker
        finally:
            loaded.num_users -= 1
            if loaded.replaced and not loaded.num_users:
                self._thread.call(loaded.speaker.detach)
            async with self._changed:
                self._changed.notify_all()

    async def _acquire(self, model: str) -> _Loaded:
        if model in self._loaded and not self._is_old(model):
            self.num_hits += 1
        else:
            self.num_misses += 1
        while model not in self._loaded or self._is_old(model):
            # Shielded: a client that leaves must not throw away a load that others wait for.
            try:
                await asyncio.shield(self._load_once(model))
            except Exception as error:
                # Whatever is wrong with a new version, the old one still speaks.
                if model not in self._loaded:
                    raise
                logger.warning(
                    "model=%s goes on with version=%s: %s", model, self._loaded[model].speaker.version, error
                )
                break
        loaded = self._loaded[model]
        self._loaded.move_to_end(model)
        loaded.num_users += 1
        return loaded

    def _is_old(self, model: str) -> bool:
        """Whether another version of a loaded model was published. While it is being replaced there is none."""
        newest = self._revision(model)
        return newest is not None and newest != self._loaded[model].revision

    def _load_once(self, model: str) -> asyncio.Task[None]:
        if model not in self._loads:
            task = asyncio.create_task(self._load_model(model))
            task.add_done_callback(lambda done: self._load_ended(model, done))
            self._loads[model] = task
        return self._loads[model]

    def _load_ended(self, model: str, task: asyncio.Task[None]) -> None:
        del self._loads[model]
        if not task.cancelled() and task.exception() is not None:
            logger.warning("could not load model=%s: %s", model, task.exception())

    async def _load_model(self, model: str) -> None:
        # One at a time: two loads would fight for memory and cores.
        async with self._one_load:
            base = await asyncio.to_thread(self._base_of, model)
            if model not in self._loaded:
                await self._make_room(model, base)
            revision = self._revision(model)
            speaker = await asyncio.to_thread(self._load, model)
            self._thread.call(speaker.attach)
            old = self._loaded.get(model)
            self._loaded[model] = _Loaded(speaker, base or model, revision)
            if old is not None:
                old.replaced = True
                if not old.num_users:
                    self._thread.call(old.speaker.detach)
            logger.info("loaded model=%s version=%s", model, speaker.version)

    async def _make_room(self, model: str, base: str | None) -> None:
        """Unloads what was used least recently and nobody uses now. Raises Unavailable when all stay in use."""
        try:
            async with asyncio.timeout(self._room_timeout_s), self._changed:
                while (wanted := self._too_many(model, base)) is not None:
                    idle = next((names for names in wanted if not any(self._loaded[n].num_users for n in names)), None)
                    if idle is None:
                        await self._changed.wait()
                        continue
                    for name in idle:
                        self._thread.call(self._loaded.pop(name).speaker.detach)
                        logger.info("unloaded model=%s", name)
        except TimeoutError:
            raise Unavailable(
                f"all {self._max_models} model places and {self._max_adapters} adapter places of this replica are in "
                "use; try again, or raise max_models_per_replica or max_adapters_per_replica",
                retry_after_s=self._room_timeout_s,
            ) from None

    def _too_many(self, model: str, base: str | None) -> list[list[str]] | None:
        """None when there is room; else what could be unloaded together, least recently used first: an adapter, or a
        base with all that speaks with its weights."""
        adapters = [name for name, loaded in self._loaded.items() if loaded.base != name]
        if base is not None and len(adapters) >= self._max_adapters:
            return [[name] for name in adapters]
        by_base: dict[str, list[str]] = {}
        for name, loaded in reversed(self._loaded.items()):
            by_base.setdefault(loaded.base, []).append(name)
        if (base or model) in by_base or len(by_base) < self._max_models:
            return None
        return list(reversed(by_base.values()))


def fit_prompt(
    speaker: Speaker, messages: Sequence[Message], *, max_tokens: int, tools: Sequence[str] = ()
) -> list[int]:
    """Prompt ids of the newest part of the conversation that leaves room for `max_tokens`; system messages stay.
    Raises InvalidRequest when the newest message alone is too long."""
    room = speaker.context_window - max_tokens
    if room < 1:
        raise InvalidRequest(
            f"{max_tokens} tokens are more than the model's context window of {speaker.context_window}; ask for fewer",
            "max_tokens",
        )
    kept, shown = list(messages), [json.loads(tool) for tool in tools]
    while True:
        ids = speaker.template.prompt_ids(kept, shown)
        if len(ids) <= room:
            return ids
        turns = [i for i, m in enumerate(kept) if m.role is not Role.SYSTEM]
        if len(turns) <= 1:
            raise InvalidRequest(
                f"{len(ids)} tokens of prompt and {max_tokens} of reply exceed the model's context window of "
                f"{speaker.context_window}; shorten the message or lower max_tokens",
                "message",
            )
        # The next user turn becomes the first, because templates refuse a conversation that begins with a reply.
        first = next((i for i in turns[1:] if kept[i].role is Role.USER), turns[-1])
        kept = [m for i, m in enumerate(kept) if m.role is Role.SYSTEM or i >= first]
