"""Builds `kernels.cpp` for this processor, once: later processes load the library from the user's cache.

Without a compiler, or where it fails, there are no kernels and everything goes through torch, more slowly: `library`
logs the reason and answers None. CHATGRPO_NATIVE=0 asks for that."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

logger = logging.getLogger(__name__)

_SOURCE = Path(__file__).with_name("kernels.cpp")
# Not -ffast-math: it changes how the whole process treats small numbers, and sums their order.
_FLAGS = ("-O3", "-march=native", "-std=c++20", "-fPIC", "-shared", "-fopenmp", "-fno-math-errno", "-fno-trapping-math")
_COMPILERS = ("g++", "c++")
_TIMEOUT_S = 120.0


@functools.cache
def library() -> ctypes.CDLL | None:
    if os.environ.get("CHATGRPO_NATIVE") == "0":
        return None
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        logger.warning("no C++ compiler (%s) was found: generation takes the slower torch path", ", ".join(_COMPILERS))
        return None
    try:
        return ctypes.CDLL(str(_built(compiler, _cache_folder())))
    except (OSError, subprocess.SubprocessError) as error:
        output = getattr(error, "stderr", None) or ""
        logger.warning("kernels could not be built, generation takes the slower torch path: %s %s", error, output)
        return None


def _built(compiler: str, folder: Path) -> Path:
    target = folder / f"kernels-{_fingerprint(compiler)}.so"
    if target.is_file():
        return target
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Several processes may build at once: each into a file of its own, the last rename wins.
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".so", delete=False) as file:
        made = Path(file.name)
    try:
        command = [compiler, *_FLAGS, str(_SOURCE), "-o", str(made)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S)  # noqa: S603 - no input of a user
        made.replace(target)
    finally:
        made.unlink(missing_ok=True)
    return target


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chatgrpo" / "native"


def _fingerprint(compiler: str) -> str:
    """Of all that the machine code depends on: a home folder may be shared by unlike machines."""
    asked = subprocess.run([compiler, "--version"], check=True, capture_output=True, timeout=_TIMEOUT_S)  # noqa: S603 - see above
    version = asked.stdout
    cpuinfo = Path("/proc/cpuinfo")
    flags = [
        line
        for line in (cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else [])
        if line.startswith(("flags", "Features", "cpu family", "model\t"))
    ]
    sources = [path.read_bytes() for path in sorted(_SOURCE.parent.iterdir()) if path.suffix in {".h", ".cpp"}]
    facts = [*sources, " ".join(_FLAGS).encode(), version, platform.machine().encode()]
    return hashlib.sha256(b"\0".join([*facts, *sorted({f.encode() for f in flags})])).hexdigest()[:24]
