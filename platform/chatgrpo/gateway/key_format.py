"""How a key looks: `cgk_<id>_<secret><checksum>`.

The prefix lets secret scanners find a leaked key, the checksum (CRC-32) tells a mistyped key from a wrong one without
a look into the store, the secret has 256 bits. The store holds HMAC-SHA256(pepper, key) only: keys are random, so a
slow password hash would add nothing, and without the pepper a stolen store cannot even be checked against.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Final

PREFIX: Final = "cgk"
_FORM: Final = re.compile(r"cgk_([0-9A-HJKMNP-TV-Z]{26})_[0-9a-f]{72}")


def new_key(key_id: str) -> str:
    body = f"{PREFIX}_{key_id}_{secrets.token_hex(32)}"
    return body + _checksum(body)


def key_id_of(key: str) -> str | None:
    """The id in a well-formed key; None for anything else."""
    found = _FORM.fullmatch(key)
    return found[1] if found and _checksum(key[:-8]) == key[-8:] else None


def digest_of(key: str, pepper: bytes) -> str:
    hashed = _peppered(pepper).copy()
    hashed.update(key.encode())
    return hashed.hexdigest()


@lru_cache(maxsize=8)
def _peppered(pepper: bytes) -> hmac.HMAC:
    """The pepper is hashed in once: that is most of the work for so short a text."""
    return hmac.new(pepper, digestmod="sha256")


def read_pepper(home: Path) -> bytes:
    """The pepper under `home`, made on first use and readable by its owner alone. Every process of the platform must
    read the same one; CHATGRPO_GATEWAY__KEY_PEPPER gives it where they share no folder."""
    path = home / "key_pepper"
    if not path.exists():
        home.mkdir(parents=True, exist_ok=True)
        # Linked into place whole: two processes that start together must not make two,
        # nor one read half of it.
        mine = path.with_name(f"{path.name}.{os.getpid()}")
        with os.fdopen(os.open(mine, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        try:
            os.link(mine, path)
        except FileExistsError:
            pass
        finally:
            mine.unlink()
    return path.read_text(encoding="ascii").strip().encode()


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"
