"""The part of OpenAI's API that a chat client needs: `/v1/chat/completions` and `/v1/models`. A call is complete in
itself; conversations that the platform remembers are under /api/v2/chat. What a model here cannot do (audio, penalties,
the log-probabilities of tokens that were not sampled) is refused by name, never accepted and dropped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import datetime
from secrets import token_hex
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json

from chatgrpo.api.direct import DirectRoute
from chatgrpo.api.disconnect import while_connected
from chatgrpo.api.errors import RESPONSES
from chatgrpo.api.exchanges import Reply
from chatgrpo.api.identity import Owner, owner_of
from chatgrpo.api.models import list_models as list_own_models
from chatgrpo.api.models import require_model
from chatgrpo.api.openai_tools import SpokenText, Tool, ToolCall, split_calls
from chatgrpo.api.replies import Replies
from chatgrpo.api.services import Services, ServicesOf
from chatgrpo.api.sse import Event, event_stream
from chatgrpo.errors import InvalidRequest, NotFound
from chatgrpo.gateway.rate_limit import TokenHold, reserve_tokens
from chatgrpo.gateway.reply_cache import Asker
from chatgrpo.inference.deltas import ChatDelta, TokenLogprob
from chatgrpo.inference.engine import SamplingParams
from chatgrpo.messages import Message, Role

router = APIRouter(prefix="/v1", tags=["openai"], responses=RESPONSES)

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


class TextPart(BaseModel):
    model_config = _STRICT

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One message of the conversation so far."""

    model_config = _STRICT

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = Field(None, description="Text, or parts of type `text`.")
    name: str | None = Field(None, max_length=256, description="On a tool message: the tool's name.")
    tool_calls: list[ToolCall] | None = Field(None, max_length=128, description="On an earlier reply: its calls.")
    tool_call_id: str | None = Field(None, max_length=128, description="On a tool message: the call it answers.")

    def message(self) -> Message:
        """Raises ValueError when the parts do not go together."""
        if self.content is None and not self.tool_calls:
            raise ValueError("content: is required")
        if self.tool_calls and self.role != "assistant":
            raise ValueError("tool_calls: only replies call tools")
        if self.tool_call_id is not None and self.role != "tool":
            raise ValueError("tool_call_id: only on messages of role tool")
        content = self.content or ""
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        role = Role.SYSTEM if self.role == "developer" else Role(self.role)
        calls = tuple(call.for_template() for call in self.tool_calls or ())
        return Message(role=role, content=text, name=self.name, tool_calls=calls)


class StreamOptions(BaseModel):
    model_config = _STRICT

    include_usage: bool = Field(False, description="Send a last chunk with the usage.")


class ResponseFormat(BaseModel):
    model_config = _STRICT

    type: Literal["text"] = Field(description="The only one there is.")


class CompletionRequest(BaseModel):
    """What to continue, and how."""

    model_config = _STRICT

    model: str = Field(min_length=1, max_length=256, description="A name from GET /v1/models.")
    messages: list[ChatMessage] = Field(min_length=1, max_length=4096)
    stream: bool = Field(False, description="Answer as server-sent events that end with [DONE].")
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=16, description="How many replies; absent: one.")
    max_tokens: int | None = Field(None, ge=1, le=32768, description="Longest reply; absent: the default preset's.")
    max_completion_tokens: int | None = Field(None, ge=1, le=32768, description="The newer name of max_tokens.")
    temperature: float | None = Field(None, ge=0, le=10, description="0 is greedy; absent: the default preset's.")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, description="Beyond OpenAI's API; 0 is off.")
    stop: str | list[str] | None = Field(None, description="At most 8 texts that end a reply, left out of it.")
    seed: int | None = Field(None, ge=0, lt=2**62, description="Makes the sampling repeatable; reply i has seed + i.")
    user: str | None = Field(None, max_length=256, description="Taken for compatible clients; not stored.")
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = Field(
        None, max_length=128, description="Functions to call, if the model's chat template takes any; else refused."
    )
    tool_choice: Literal["auto", "none"] | None = Field(None, description="`none`: the model is shown no tools.")
    parallel_tool_calls: Literal[True] | None = Field(None, description="Only true: a reply may have several calls.")
    frequency_penalty: Literal[0] | None = Field(None, description="Only 0: there are no penalties.")
    presence_penalty: Literal[0] | None = Field(None, description="Only 0: there are no penalties.")
    logprobs: bool | None = Field(
        None, description="Tell the log-probability of each token, at the temperature of the request (0: at 1)."
    )
    top_logprobs: Literal[0] | None = Field(None, description="Only 0: of the tokens that were sampled, no others.")

    def said(self) -> tuple[Message, ...]:
        """Raises InvalidRequest naming the message that makes no sense where it stands."""
        messages, calls = [], set[str]()
        for i, message in enumerate(self.messages):
            calls |= {call.id for call in message.tool_calls or ()}
            try:
                messages.append(message.message())
            except ValueError as error:
                raise InvalidRequest(str(error), f"messages[{i}]") from error
            if message.tool_call_id is not None and message.tool_call_id not in calls:
                raise InvalidRequest("answers a call that no message before it makes", f"messages[{i}].tool_call_id")
        return tuple(messages)

    def shown_tools(self) -> tuple[str, ...]:
        return () if self.tool_choice == "none" else tuple(tool.to_json() for tool in self.tools or ())

    def stops(self) -> tuple[str, ...]:
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if len(stops) > 8 or "" in stops:
            raise InvalidRequest("give at most 8 texts, none of them empty", "stop")
        return stops


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """A validated request. Reply i is written with params[i]."""

    replies: Replies
    asker: Asker
    model: str
    messages: tuple[Message, ...]
    params: tuple[SamplingParams, ...]
    tokens: TokenHold
    created: int
    completion_id: str

    def speak(self, index: int) -> AsyncGenerator[ChatDelta, None]:
        return self.replies.stream(self.model, self.messages, self.params[index], self.asker)

    def answer(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        head = {"id": self.completion_id, "object": kind, "created": self.created, "model": self.model}
        return {**head, "choices": choices, **more}


@router.post(
    "/chat/completions",
    response_model=None,
    responses={200: {"content": {"application/json": {}, "text/event-stream": {}}, "description": "OpenAI's shapes."}},
)
async def complete(request: Request, body: CompletionRequest) -> Response:
    """Writes the next message. A client that leaves cancels it."""
    # Not as dependencies: each costs as much as two of the gateway's layers, and this is the busiest route.
    services: Services = request.app.state.services
    replies: Replies = request.app.state.replies
    owner = owner_of(request)
    params = _params(body, services)
    version = await require_model(services, body.model, owner=owner)
    call = _Call(
        replies=replies,
        asker=Asker(tenant=owner, version=version),
        model=body.model,
        messages=body.said(),
        params=params,
        tokens=await reserve_tokens(request, sum(p.max_tokens for p in params)),
        created=int(services.clock.now()),
        completion_id=f"chatcmpl-{token_hex(12)}",
    )
    if not body.stream:
        content = to_json(await while_connected(request, _whole(call)), inf_nan_mode="null")
        return Response(content, media_type="application/json")
    pieces = _merged(call)
    # Awaited here, so that what goes wrong before the first piece is answered with its own status.
    first = await while_connected(request, _first(pieces))
    with_usage = body.stream_options is not None and body.stream_options.include_usage
    return event_stream(_chunks(call, first, pieces, with_usage=with_usage))


DIRECT = DirectRoute(CompletionRequest, complete)


def _params(body: CompletionRequest, services: Services) -> tuple[SamplingParams, ...]:
    preset = services.config.decoding_presets["default"]
    params = SamplingParams(
        max_tokens=body.max_completion_tokens or body.max_tokens or preset.max_tokens,
        temperature=preset.temperature if body.temperature is None else body.temperature,
        top_p=body.top_p or preset.top_p,
        top_k=preset.top_k if body.top_k is None else body.top_k,
        stop=body.stops(),
        seed=body.seed,
        logprobs=bool(body.logprobs),
        tools=body.shown_tools(),
    )
    if body.n in {None, 1}:
        return (params,)
    seeds = [None if body.seed is None else body.seed + i for i in range(body.n or 1)]
    return tuple(replace(params, seed=seed) for seed in seeds)


@dataclass(frozen=True, slots=True)
class _Piece:
    """A delta of reply `index`."""

    index: int
    delta: ChatDelta


async def _merged(call: _Call) -> AsyncGenerator[_Piece, None]:
    """The pieces of all replies as they come. Ending it early cancels those still being written; what was not written
    is given back."""
    num_tokens = 0
    try:
        if len(call.params) == 1:  # most calls want one reply: no tasks, no queue
            async with aclosing(call.speak(0)) as deltas:
                async for delta in deltas:
                    num_tokens += delta.num_tokens
                    yield _Piece(0, delta)
            return
        async with aclosing(_together(call)) as pieces:
            async for piece in pieces:
                num_tokens += piece.delta.num_tokens
                yield piece
    finally:
        await call.tokens.settle(num_tokens)


async def _together(call: _Call) -> AsyncGenerator[_Piece, None]:
    queue: asyncio.Queue[_Piece | None] = asyncio.Queue(maxsize=16)

    async def write(index: int) -> None:
        async with aclosing(call.speak(index)) as deltas:
            async for delta in deltas:
                await queue.put(_Piece(index, delta))

    async def write_all() -> None:
        try:
            await asyncio.gather(*writers)
        finally:
            await queue.put(None)

    writers = [asyncio.create_task(write(i)) for i in range(len(call.params))]
    writing = asyncio.create_task(write_all())
    try:
        while (piece := await queue.get()) is not None:
            yield piece
        await writing
    finally:
        for task in (*writers, writing):
            task.cancel()
        await asyncio.gather(*writers, writing, return_exceptions=True)


async def _first(pieces: AsyncGenerator[_Piece, None]) -> _Piece:
    return await anext(pieces)


async def _whole(call: _Call) -> dict[str, Any]:
    replies = [Reply() for _ in call.params]
    logprobs: list[list[TokenLogprob]] = [[] for _ in call.params]
    num_prompt_tokens = 0
    async with aclosing(_merged(call)) as pieces:
        async for piece in pieces:
            replies[piece.index].add(piece.delta)
            logprobs[piece.index] += piece.delta.logprobs
            num_prompt_tokens = piece.delta.num_prompt_tokens
    choices = [
        {
            "index": i,
            **_told(reply, has_tools=bool(call.params[i].tools)),
            "logprobs": _logprobs(logprobs[i]) if call.params[i].logprobs else None,
        }
        for i, reply in enumerate(replies)
    ]
    usage = _usage(num_prompt_tokens, sum(reply.num_tokens for reply in replies))
    return call.answer("chat.completion", choices, usage=usage, system_fingerprint=replies[0].model_version)


def _told(reply: Reply, *, has_tools: bool) -> dict[str, Any]:
    text, calls = split_calls(reply.text) if has_tools else (reply.text, [])
    if not calls:
        return {
            "message": {"role": "assistant", "content": text, "refusal": None},
            "finish_reason": reply.finish_reason,
        }
    message = {"role": "assistant", "content": text or None, "refusal": None, "tool_calls": calls}
    return {"message": message, "finish_reason": "tool_calls"}


async def _chunks(
    call: _Call, first: _Piece, pieces: AsyncGenerator[_Piece, None], *, with_usage: bool
) -> AsyncGenerator[Event, None]:
    num_tokens = 0
    spoken = {i: SpokenText() for i, params in enumerate(call.params) if params.tools}
    async with aclosing(pieces):
        for i in range(len(call.params)):
            yield _chunk(call, i, {"role": "assistant", "content": ""}, None)
        async for piece in _chained(first, pieces):
            num_tokens += piece.delta.num_tokens
            index, text, reason = piece.index, piece.delta.text, piece.delta.finish_reason
            calls: list[dict[str, Any]] = []
            if index in spoken:
                text = spoken[index].push(text)
                if reason is not None:
                    rest, calls = spoken[index].finish()
                    text += rest
            if text or piece.delta.logprobs:
                logprobs = _logprobs(piece.delta.logprobs) if piece.delta.logprobs else None
                yield _chunk(call, index, {"content": text}, None, logprobs)
            if calls:
                yield _chunk(call, index, {"tool_calls": [{"index": i, **c} for i, c in enumerate(calls)]}, None)
            if reason is not None:
                yield _chunk(call, index, {}, "tool_calls" if calls else str(reason))
    if with_usage:
        usage = _usage(first.delta.num_prompt_tokens, num_tokens)
        yield Event(data=call.answer("chat.completion.chunk", [], usage=usage))
    yield Event(data="[DONE]")


async def _chained(first: _Piece, rest: AsyncIterator[_Piece]) -> AsyncIterator[_Piece]:
    yield first
    async for piece in rest:
        yield piece


def _chunk(
    call: _Call,
    index: int,
    delta: dict[str, Any],
    finish_reason: str | None,
    logprobs: dict[str, Any] | None = None,
) -> Event:
    choice = {"index": index, "delta": delta, "finish_reason": finish_reason, "logprobs": logprobs}
    return Event(data=call.answer("chat.completion.chunk", [choice]))


def _logprobs(tokens: Iterable[TokenLogprob]) -> dict[str, Any]:
    content = [
        {
            "token": token.text,
            "logprob": token.logprob,
            # A token may be a part of a character: its bytes are then not known here.
            "bytes": None if "\ufffd" in token.text else list(token.text.encode()),
            "top_logprobs": [],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _usage(num_prompt_tokens: int, num_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_tokens,
        "total_tokens": num_prompt_tokens + num_tokens,
    }


@router.get("/models")
async def list_models(services: ServicesOf, owner: Owner) -> dict[str, Any]:
    """The models that can be chatted with now. `created` is 0 where it is not known."""
    found = await list_own_models(services, owner)
    return {"object": "list", "data": [_model(model) for model in found["models"] if model["available"]]}


@router.get("/models/{model}")
async def get_model(
    model: Annotated[str, Path(max_length=256, description="Its name.")], services: ServicesOf, owner: Owner
) -> dict[str, Any]:
    """One of them."""
    for found in (await list_models(services, owner))["data"]:
        if found["id"] == model:
            return dict(found)
    raise NotFound(f"model {model!r} does not exist; GET /v1/models lists what can be chatted with")


def _model(model: dict[str, Any]) -> dict[str, Any]:
    created_at = model.get("created_at")
    created = int(datetime.fromisoformat(created_at).timestamp()) if created_at else 0
    return {"id": model["id"], "object": "model", "created": created, "owned_by": f"chatgrpo:{model['source']}"}
