"""What prompts begin with, kept computed: a system prompt, a document, the conversation so far.

Keys and values of a token depend only on the tokens before it, so what one request computed serves every later one as
far as both begin alike. Entries are whole requests; a new prompt takes the longest common beginning. The least recently
used go first when the budget is full.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

from torch import Tensor

# A shorter beginning is computed as fast as it is copied.
MIN_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Computed:
    """Keys and values (layers x KLD each) of `token_ids`."""

    token_ids: tuple[int, ...]
    keys: Tensor
    values: Tensor

    def first(self, num_tokens: int) -> Computed:
        return Computed(self.token_ids[:num_tokens], self.keys[:, :, :num_tokens], self.values[:, :, :num_tokens])

    @property
    def num_bytes(self) -> int:
        return 2 * self.keys.numel() * self.keys.element_size()


class PrefixStore:
    """`owner` is whose weights computed an entry: it serves no other. A budget of 0 keeps nothing."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._entries: OrderedDict[tuple[Hashable, tuple[int, ...]], Computed] = OrderedDict()

    def find(self, owner: Hashable, token_ids: tuple[int, ...]) -> Computed | None:
        """The longest beginning of `token_ids` that is known, at least MIN_TOKENS long; never all of it, since the last
        token's output is what is asked for."""
        best, key = MIN_TOKENS - 1, None
        for candidate in self._entries:
            if candidate[0] == owner:
                length = common_length(candidate[1], token_ids[:-1], longer_than=best)
                if length > best:
                    best, key = length, candidate
        if key is None:
            return None
        self._entries.move_to_end(key)
        return self._entries[key].first(best)

    def put(self, owner: Hashable, computed: Computed) -> None:
        """Entries that are a beginning of the new one are dropped: it serves for them."""
        if computed.num_bytes > self.max_bytes or len(computed.token_ids) < MIN_TOKENS:
            return
        ids = computed.token_ids
        for key in [k for k in self._entries if k[0] == owner and k[1] == ids[: len(k[1])]]:
            self._drop(key)
        self._entries[owner, ids] = computed
        self.num_bytes += computed.num_bytes
        while self.num_bytes > self.max_bytes:
            self._drop(next(iter(self._entries)))

    def forget(self, owner: Hashable) -> None:
        for key in [k for k in self._entries if k[0] == owner]:
            self._drop(key)

    def clear(self) -> None:
        self._entries.clear()
        self.num_bytes = 0

    def _drop(self, key: tuple[Hashable, tuple[int, ...]]) -> None:
        self.num_bytes -= self._entries.pop(key).num_bytes


def common_length(a: tuple[int, ...], b: tuple[int, ...], *, longer_than: int = 0) -> int:
    """How many first items are equal; anything up to `longer_than` when they are not more than that."""
    low, high = longer_than, min(len(a), len(b))
    if high <= low or a[: low + 1] != b[: low + 1]:
        return 0
    low += 1
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
