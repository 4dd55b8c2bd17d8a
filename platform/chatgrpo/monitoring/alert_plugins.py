"""Alert handlers of other packages. One declares in its pyproject.toml

    [project.entry-points."chatgrpo.alert_handlers"]
    pager = "my_package.paging:make_pager"

and `configs/alerts.yaml` says `{type: plugin, name: pager, options: {team: ml}}`. `make_pager(team="ml")` is called
once, when the hub starts; what it returns is awaited with the alerts that began to fire or were resolved, as
dictionaries.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.metadata import entry_points
from typing import Any

from chatgrpo.errors import InvalidRequest
from chatgrpo.monitoring.alert_config import PluginHandler

GROUP = "chatgrpo.alert_handlers"

AlertHandler = Callable[[list[dict[str, Any]]], Awaitable[None]]


def load_handler(handler: PluginHandler) -> AlertHandler:
    """Raises InvalidRequest when there is no such entry point or it cannot be used."""
    found = {point.name: point for point in entry_points(group=GROUP)}
    if handler.name not in found:
        known = ", ".join(sorted(found)) or "none"
        raise InvalidRequest(
            f"no installed package has the entry point {handler.name!r} in {GROUP}; there are: {known}"
        )
    try:
        made = found[handler.name].load()(**handler.options)
    except Exception as error:
        # Foreign code may raise anything when it is imported or called; the mistake is the plug-in's or its options'.
        reason = f"{type(error).__name__}: {error}"
        raise InvalidRequest(f"alert handler {handler.name} cannot be made: {reason}", "handlers") from error
    if not callable(made):
        raise InvalidRequest(f"alert handler {handler.name} is no function but a {type(made).__name__}", "handlers")
    return made  # type: ignore[no-any-return]
