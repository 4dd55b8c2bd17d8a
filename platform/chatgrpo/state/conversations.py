"""Conversations: created, continued, read, forked, rolled back, forgotten. Works as a library, without Ray.

    conversations = await open_conversations("state.db")       # or "redis://...", or "memory:"
    chat = await conversations.create(None, tenant="t", user_id="u", context={})            # -> Conversation
    done = await conversations.append(chat.id, [user("hi")], tenant="t", expected_version=0) # -> Appended(version=1)
    window = await conversations.read_recent(chat.id, tenant="t", max_tokens=2000)           # -> Window
    window.messages, window.version, [turn.version for turn in window.turns]

Every method is async and takes `tenant`: `create(conversation_id | None, *, tenant, user_id, context, ttl_s)`,
`get(id)`, `append(id, messages, *, expected_version=None, metadata=(), context=None, append_id=None)`,
`set_context(id, context)`, `read_recent(id, *, max_messages=None, max_tokens=None)`,
`read(id, *, after=0, limit=100, at_version=None)`, `list(*, user_id=None, cursor=None, limit=50)`, `delete(id)`,
`fork(id, *, at_version=None, new_id=None)`, `rollback(id, to_version, *, expected_version=None)`,
`feedback(id, version, *, score, label, corrected)`, `export(...)` (an async iterator of training lines),
`create_snapshot(*, user_id=None, name="")`, `list_snapshots()`, `restore_snapshot(id)`, `delete_snapshot(id)`.
Reads and writes of one conversation also take `level` (a Consistency, or None for the default), reads take `session`
(a SessionToken): `session.advance(result)` is the client's next token, for every Conversation, Appended and Window.
One message is one version. A stale `expected_version` raises Conflict with `current_version`; unknown, expired and
other tenants' conversations raise NotFound alike; TooLarge names its limit. `ConversationClient` in
`actors/conversation_store.py` has the same methods and routes them to shards.
"""

from __future__ import annotations

from chatgrpo.state.forgetting import Forgetting
from chatgrpo.state.judging import Judging
from chatgrpo.state.rewinding import Rewinding
from chatgrpo.state.writing import Writing


class Conversations(Writing, Judging, Rewinding, Forgetting):
    """See the top of this file. Reading comes with judging, branching with rewinding."""

    async def ping(self) -> None:
        """Raises Unavailable when the store does not answer."""
        await self.tiers.store.ping()

    async def close(self) -> None:
        await self.tiers.close()
