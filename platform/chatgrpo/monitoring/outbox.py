"""What waits to be written to one live reader: bounded, so that one who does not read costs a bounded amount."""

from __future__ import annotations

from collections import deque

# At an event a second: a reader may sleep for four minutes.
MAX_WAITING = 256
MAX_WAITING_CHARS = 2**20


class Outbox:
    """A queue of texts. Once it has overflowed it takes nothing more."""

    def __init__(self, *, max_waiting: int = MAX_WAITING, max_chars: int = MAX_WAITING_CHARS) -> None:
        self._max_waiting, self._max_chars = max_waiting, max_chars
        self._texts: deque[str] | None = None
        self._num_chars = 0
        self.has_overflowed = False

    def __len__(self) -> int:
        return len(self._texts or ())

    def put(self, text: str) -> bool:
        """False when it would hold too much; then all that waited is gone. A single text always fits."""
        if self.has_overflowed:
            return False
        # Made when it is needed: nearly all of ten thousand readers have nothing waiting at any time.
        self._texts = self._texts if self._texts is not None else deque()
        is_full = len(self._texts) >= self._max_waiting or self._num_chars + len(text) > self._max_chars
        if is_full and self._texts:
            self.has_overflowed = True
            self._texts, self._num_chars = None, 0
            return False
        self._texts.append(text)
        self._num_chars += len(text)
        return True

    def take(self) -> str | None:
        """The oldest; None when nothing waits."""
        if not self._texts:
            self._texts = None
            return None
        text = self._texts.popleft()
        self._num_chars -= len(text)
        return text
