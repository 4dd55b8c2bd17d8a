"""A request's body that was read before the application asked for it."""

from __future__ import annotations

from starlette.types import Message, Receive


def body_again(body: bytes, receive: Receive) -> Receive:
    """The body once more, then what comes after it."""
    is_told = False

    async def told() -> Message:
        nonlocal is_told
        if is_told:
            return await receive()
        is_told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return told
