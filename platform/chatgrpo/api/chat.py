"""Chat with the base model or with what a job trained; answers whole or as a stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from chatgrpo.api.disconnect import while_connected
from chatgrpo.api.errors import RESPONSES
from chatgrpo.api.exchanges import Exchange, Reply, keep_exchange, open_exchange
from chatgrpo.api.identity import Owner
from chatgrpo.api.models import require_model
from chatgrpo.api.replies import Replies, RepliesOf
from chatgrpo.api.services import Services, ServicesOf
from chatgrpo.api.sse import Event, event_stream
from chatgrpo.config import PlatformConfig
from chatgrpo.errors import InvalidRequest
from chatgrpo.gateway.rate_limit import TokenHold, reserve_tokens
from chatgrpo.gateway.reply_cache import Asker
from chatgrpo.inference.deltas import ChatDelta
from chatgrpo.inference.engine import SamplingParams

router = APIRouter(prefix="/api/v2/chat", tags=["chat"], responses=RESPONSES)


class ChatRequest(BaseModel):
    """One message of a person."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    message: str = Field(min_length=1, description="What the person says.")
    conversation_id: str | None = Field(
        None, min_length=1, max_length=128, description="Continues a conversation; absent: a new one."
    )
    user_id: str | None = Field(None, min_length=1, max_length=256, description="Who speaks; kept with a new one.")
    context: dict[str, JsonValue] = Field(
        default_factory=dict, description="Facts to keep with the conversation; merged into those it has."
    )
    model: str | None = Field(
        None, min_length=1, max_length=256, description="A name from GET /api/v2/models; absent: the default model."
    )
    strategy: str = Field("default", max_length=64, description="Decoding preset of the platform's configuration.")
    temperature: float | None = Field(None, ge=0, le=10, description="0 is greedy; absent: the preset's.")
    max_tokens: int | None = Field(None, ge=1, le=32768, description="Longest reply; absent: the preset's.")
    top_p: float | None = Field(None, gt=0, le=1, description="Nucleus sampling; absent: the preset's.")
    top_k: int | None = Field(None, ge=0, description="Top-k sampling, 0 is off; absent: the preset's.")
    seed: int | None = Field(None, ge=0, lt=2**63, description="Makes the sampling repeatable.")
    stop: list[str] = Field(default_factory=list, max_length=8, description="Texts that end the reply, left out of it.")
    stream: bool = Field(False, description="Answer as server-sent events: start, delta..., done (or error).")


class ChatMetadata(BaseModel):
    strategy: str
    response_time: float = Field(description="Seconds from the request to the end of the reply.")
    tokens_generated: int
    model: str
    model_version: str
    finish_reason: str = Field(description="`stop`: the model or a stop text ended the reply; `length`: max_tokens.")


class ChatResponse(BaseModel):
    conversation_id: str
    response: str
    context: dict[str, Any]
    turn_count: int = Field(description="Exchanges of the conversation so far, this one included.")
    version: int = Field(description="Version of the conversation after the reply; feedback on the reply names it.")
    metadata: ChatMetadata


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """A validated request, on its way."""

    services: Services
    replies: Replies
    exchange: Exchange
    model: str
    version: str
    strategy: str
    params: SamplingParams
    tokens: TokenHold
    started_s: float

    def speak(self) -> AsyncGenerator[ChatDelta, None]:
        asker = Asker(tenant=self.exchange.owner, version=self.version, conversation_id=self.exchange.conversation_id)
        return self.replies.stream(self.model, self.exchange.prompt, self.params, asker)


@router.post(
    "",
    response_model=ChatResponse,
    responses={200: {"content": {"text/event-stream": {}}, "description": "The reply, whole or as events."}},
)
async def chat(request: Request, body: ChatRequest, services: ServicesOf, replies: RepliesOf, owner: Owner) -> Response:
    """Says something and returns the reply. The exchange is kept once its last token is out; a client that leaves
    earlier cancels it and nothing is kept."""
    started_s = services.clock.monotonic()
    model = body.model or services.config.default_model
    params = sampling_params(body, services.config)
    version = await require_model(services, model, owner=owner)
    exchange = await open_exchange(
        services,
        body.message,
        owner=owner,
        conversation_id=body.conversation_id,
        user_id=body.user_id,
        context=body.context,
    )
    call = _Call(
        services=services,
        replies=replies,
        exchange=exchange,
        model=model,
        version=version,
        strategy=body.strategy,
        params=params,
        tokens=await reserve_tokens(request, params.max_tokens),
        started_s=started_s,
    )
    if not body.stream:
        answer = await while_connected(request, _whole(call))
        return JSONResponse(answer.model_dump())
    deltas = call.speak()
    # The first piece is awaited here, so that what goes wrong before it is answered with its own status.
    first = await while_connected(request, _first(call, deltas))
    return event_stream(_events(call, first, deltas))


def sampling_params(body: ChatRequest, config: PlatformConfig) -> SamplingParams:
    """The preset, with what the request says on top."""
    preset = config.decoding_presets.get(body.strategy)
    if preset is None:
        raise InvalidRequest(
            f"{body.strategy!r} is not a decoding preset; one of {', '.join(sorted(config.decoding_presets))}",
            "strategy",
        )
    if "" in body.stop:
        raise InvalidRequest("a stop text must not be empty", "stop")
    return SamplingParams(
        max_tokens=body.max_tokens or preset.max_tokens,
        temperature=preset.temperature if body.temperature is None else body.temperature,
        top_p=body.top_p or preset.top_p,
        top_k=preset.top_k if body.top_k is None else body.top_k,
        stop=tuple(body.stop),
        seed=body.seed,
    )


async def _first(call: _Call, deltas: AsyncGenerator[ChatDelta, None]) -> ChatDelta:
    try:
        return await anext(deltas)
    except BaseException:  # whatever it was: nothing was written, so nothing is charged
        await call.tokens.settle(0)
        raise


async def _whole(call: _Call) -> ChatResponse:
    reply = Reply()
    try:
        # Closing the stream is what takes the request out of the model's batch.
        async with aclosing(call.speak()) as deltas:
            async for delta in deltas:
                reply.add(delta)
    finally:
        await call.tokens.settle(reply.num_tokens)
    return await _keep(call, reply)


async def _events(
    call: _Call, first: ChatDelta, deltas: AsyncGenerator[ChatDelta, None]
) -> AsyncGenerator[Event, None]:
    reply = Reply()
    try:
        async with aclosing(deltas):
            yield Event(event="start", data={"conversation_id": call.exchange.conversation_id, "model": call.model})
            reply.add(first)
            yield _delta(first)
            async for delta in deltas:
                reply.add(delta)
                yield _delta(delta)
    finally:
        await call.tokens.settle(reply.num_tokens)
    answer = await _keep(call, reply)
    yield Event(event="done", data=answer.model_dump())


def _delta(delta: ChatDelta) -> Event:
    return Event(event="delta", data={"text": delta.text})


async def _keep(call: _Call, reply: Reply) -> ChatResponse:
    kept = await keep_exchange(call.services, call.exchange, reply, model=call.model, strategy=call.strategy)
    return ChatResponse(
        conversation_id=call.exchange.conversation_id,
        response=reply.text,
        context=dict(kept.context),
        turn_count=kept.turn_count,
        version=kept.version,
        metadata=ChatMetadata(
            strategy=call.strategy,
            response_time=call.services.clock.monotonic() - call.started_s,
            tokens_generated=reply.num_tokens,
            model=call.model,
            model_version=reply.model_version,
            finish_reason=reply.finish_reason,
        ),
    )
