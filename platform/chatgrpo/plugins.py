"""The user's own code: modules that register rewards, tools and environments when they are imported."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path

from chatgrpo.errors import InvalidRequest


def load_plugins(names: Sequence[str]) -> None:
    """Imports modules (`my_package.rewards`) and files (`./rewards.py`), each once a process.

    Raises InvalidRequest naming the plug-in, the line and the reason when one cannot be imported."""
    for name in names:
        if name.endswith(".py"):
            _load_file(Path(name).expanduser().resolve())
        else:
            _load(name, partial(importlib.import_module, name))


def _load_file(path: Path) -> None:
    if not path.is_file():
        raise InvalidRequest(f"{path}: no such file; give a module name or the path of a .py file", "plugins")
    # Two files of one name are two modules.
    name = f"chatgrpo_plugin_{path.stem}_{blake2b(str(path).encode(), digest_size=4).hexdigest()}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # a .py file always has one
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        _load(str(path), partial(spec.loader.exec_module, module))
    except InvalidRequest:
        del sys.modules[name]
        raise


def _load(name: str, run: Callable[[], object]) -> None:
    try:
        run()
    except Exception as error:
        # Foreign code may raise anything while it is imported; it is always the plug-in's mistake.
        raise InvalidRequest(f"plug-in {name} cannot be imported: {_reason(error, name)}", "plugins") from error


def _reason(error: Exception, name: str) -> str:
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == name]
    where = f"line {lines[-1]}: " if lines else ""
    return f"{where}{type(error).__name__}: {error}"
