"""Every route of the API as data: who may call it, how long it may take, what of it is audited."""

from __future__ import annotations

from chatgrpo.gateway.config import RouteConfig
from chatgrpo.gateway.roles import Permission

_JOBS = "/api/v2/jobs"
_JOB = "/api/v2/jobs/{job_id}"
_SWEEPS = "/api/v2/sweeps"
_SWEEP = "/api/v2/sweeps/{job_id}"
_ALERTS = "/api/v2/alerts"
_TALKS = "/api/v2/conversations"
_SNAPSHOTS = "/api/v2/snapshots"
_TALK = "/api/v2/conversations/{conversation_id}"
_ITEMS = "/v1/conversations/{conversation_id}/items"
# A model on a CPU may write for minutes before a whole reply is there.
_REPLY_S = 600.0


def _public(path: str) -> RouteConfig:
    return RouteConfig(path=path, requires_auth=False)


def _read(path: str, permission: Permission) -> RouteConfig:
    return RouteConfig(path=path, permission=permission)


def _act(
    path: str, permission: Permission, audit: str, *, methods: tuple[str, ...] = ("POST",), timeout: float = 60.0
) -> RouteConfig:
    return RouteConfig.model_validate(
        {"path": path, "methods": methods, "permission": permission, "audit": audit, "timeout": timeout}
    )


def _talk(path: str, permission: Permission, audit: str, *, timeout: float = 60.0) -> RouteConfig:
    """An act that is frequent and harmless: its answer does not wait for the disk."""
    return _act(path, permission, audit, timeout=timeout).model_copy(update={"is_audit_strict": False})


def _shed_first(row: RouteConfig) -> RouteConfig:
    """What concerns training makes room for chat when replies pile up."""
    return row.model_copy(update={"is_shed_first": True})


def _unkept(row: RouteConfig) -> RouteConfig:
    """Its answer holds a key's secret, which is stored nowhere."""
    return row.model_copy(update={"keeps_answers": False})


def _old(path: str, successor: str, *methods: str) -> RouteConfig:
    return RouteConfig.model_validate({"path": path, "successor": successor, "methods": methods})


def _old_shape(row: RouteConfig, successor: str) -> RouteConfig:
    """Deprecated too, but with a handler of its own: what it answers is not what its successor does."""
    return row.model_copy(update={"successor": successor, "is_forwarded": False})


ALIASES: tuple[RouteConfig, ...] = (
    _old("/api/chat", "/api/v2/chat", "POST"),
    _old("/api/metrics", "/api/v2/metrics", "GET"),
    _old("/api/conversations/{conversation_id}", _TALK, "GET", "DELETE"),
    _old("/api/scale", "/api/v2/system/scale", "POST"),
    _old("/health", "/api/v2/health", "GET"),
    _old("/ws", "/ws/v2", "WEBSOCKET"),
)

ROUTES: tuple[RouteConfig, ...] = (
    *ALIASES,
    # What a load balancer and a reader of the documentation see without a key.
    *map(_public, ("/api/v2/health", "/docs", "/docs/assets/{file:path}", "/redoc", "/openapi.json")),
    # The dashboard's files hold no data; what they show is asked for with the reader's own key.
    *map(_public, ("/", "/dashboard/{file:path}")),
    _shed_first(_act("/api/v2/train", Permission.JOBS_WRITE, "job.submit")),
    _old_shape(_shed_first(_act("/api/train", Permission.JOBS_WRITE, "job.submit")), "/api/v2/train"),
    _old_shape(_read("/api/status/{job_id}", Permission.JOBS_READ), _JOB),
    _read(_JOBS, Permission.JOBS_READ),
    _read(_JOB, Permission.JOBS_READ),
    _act(_JOB, Permission.JOBS_WRITE, "job.cancel", methods=("DELETE",)),
    *(_act(f"{_JOB}/{act}", Permission.JOBS_WRITE, f"job.{act}") for act in ("cancel", "pause")),
    *(_shed_first(_act(f"{_JOB}/{act}", Permission.JOBS_WRITE, f"job.{act}")) for act in ("resume", "retry")),
    *(
        _shed_first(_read(f"{_JOB}/{part}", Permission.JOBS_READ))
        for part in ("events", "checkpoints", "metrics", "trajectories", "logs")
    ),
    _act(_SWEEPS, Permission.JOBS_WRITE, "sweep.submit"),
    _read(_SWEEPS, Permission.JOBS_READ),
    _read(_SWEEP, Permission.JOBS_READ),
    _act(_SWEEP, Permission.JOBS_WRITE, "sweep.cancel", methods=("DELETE",)),
    _talk("/api/v2/chat", Permission.CHAT, "chat.send", timeout=_REPLY_S),
    _talk("/v1/chat/completions", Permission.CHAT, "chat.complete", timeout=_REPLY_S),
    _read("/v1/models", Permission.MODELS_READ),
    _read("/v1/models/{model}", Permission.MODELS_READ),
    *(
        _read(path, Permission.CONVERSATIONS_READ)
        for path in (
            _TALKS,
            f"{_TALKS}/export",
            _TALK,
            f"{_TALK}/messages",
            f"{_TALK}/history",
        )
    ),
    *(
        _read(path, Permission.CONVERSATIONS_READ)
        for path in (_ITEMS.removesuffix("/items"), _ITEMS, f"{_ITEMS}/{{item_id}}")
    ),
    _act("/v1/conversations", Permission.CONVERSATIONS_WRITE, "conversation.create"),
    _act(_ITEMS.removesuffix("/items"), Permission.CONVERSATIONS_WRITE, "conversation.set_context"),
    _act(_ITEMS.removesuffix("/items"), Permission.CONVERSATIONS_WRITE, "conversation.remove", methods=("DELETE",)),
    _talk(_ITEMS, Permission.CONVERSATIONS_WRITE, "conversation.append"),
    _act(_TALKS, Permission.CONVERSATIONS_WRITE, "conversation.create"),
    _act(_TALK, Permission.CONVERSATIONS_WRITE, "conversation.remove", methods=("DELETE",)),
    _talk(f"{_TALK}/messages", Permission.CONVERSATIONS_WRITE, "conversation.append"),
    _act(f"{_TALK}/context", Permission.CONVERSATIONS_WRITE, "conversation.set_context", methods=("PUT",)),
    *(
        _act(f"{_TALK}/{act}", Permission.CONVERSATIONS_WRITE, f"conversation.{act}")
        for act in ("fork", "rollback", "feedback")
    ),
    _read(_SNAPSHOTS, Permission.CONVERSATIONS_READ),
    _act(_SNAPSHOTS, Permission.CONVERSATIONS_WRITE, "snapshot.create"),
    _act(f"{_SNAPSHOTS}/{{snapshot_id}}/restore", Permission.CONVERSATIONS_WRITE, "snapshot.restore", timeout=_REPLY_S),
    _act(f"{_SNAPSHOTS}/{{snapshot_id}}", Permission.CONVERSATIONS_WRITE, "snapshot.remove", methods=("DELETE",)),
    _read("/api/v2/models", Permission.MODELS_READ),
    *(_read(path, Permission.SYSTEM_READ) for path in ("/api/v2/metrics", "/api/v2/system/status", "/metrics")),
    _act("/api/v2/system/scale", Permission.SYSTEM_WRITE, "system.scale"),
    _read("/api/v2/advice", Permission.SYSTEM_READ),
    *(_read(path, Permission.SYSTEM_READ) for path in (_ALERTS, f"{_ALERTS}/silences")),
    _act(f"{_ALERTS}/silences", Permission.SYSTEM_WRITE, "alerts.silence"),
    _act(f"{_ALERTS}/silences/{{silence_id}}", Permission.SYSTEM_WRITE, "alerts.unsilence", methods=("DELETE",)),
    RouteConfig(path="/ws/v2", methods=("WEBSOCKET",), permission=Permission.SYSTEM_READ),
    _read("/ws/v2/events", Permission.SYSTEM_READ),
    _unkept(_act("/api/v2/keys", Permission.KEYS_MANAGE, "key.create")),
    _read("/api/v2/audit", Permission.KEYS_MANAGE),
    _read("/api/v2/keys", Permission.KEYS_MANAGE),
    _act("/api/v2/keys/{key_id}", Permission.KEYS_MANAGE, "key.revoke", methods=("DELETE",)),
    _unkept(_act("/api/v2/keys/{key_id}/rotate", Permission.KEYS_MANAGE, "key.rotate")),
)
