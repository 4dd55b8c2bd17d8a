"""What a rollout leaves behind: the exact sampled ids, with the mask that says which of them the policy chose.

The mask contract, the only one in the platform: `completion_mask[t]` is True iff `token_ids[t]` was sampled by the
policy. Prompt, user, tool and template tokens are False. Losses read the mask and never look at token values, so a
pad token that equals EOS, or a tool answer that looks like a completion, cannot be mistaken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from chatgrpo.environments.base import Task
from chatgrpo.messages import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One reply of the policy: `start`/`end` are its token range in the episode.

    `weight_version` sampled its first token. Weights that were swapped in while it was being written are in `swaps`, as
    (first token that the newer version sampled, that version), oldest first."""

    start: int
    end: int
    finish_reason: str
    weight_version: int
    swaps: tuple[tuple[int, int], ...] = ()

    def versions(self) -> Iterator[tuple[int, int]]:
        """(weight version, number of tokens that it sampled), in order."""
        starts = [(self.start, self.weight_version), *self.swaps]
        for (start, version), (stop, _) in zip(starts, [*starts[1:], (self.end, 0)], strict=True):
            yield version, stop - start


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """One conversation played to its end. The first `prompt_length` tokens are the opening prompt.

    `logprobs[t]` is the sampler's log-probability where the mask is True and 0.0 elsewhere.
    `truncated`: the last reply was cut by a length limit. `reward` is the rubric's weighted sum
    (None when no reward applied); `breakdown` holds each reward before weighting (None: did not apply or failed)."""

    token_ids: tuple[int, ...]
    completion_mask: tuple[bool, ...]
    logprobs: tuple[float, ...]
    prompt_length: int
    turns: tuple[Turn, ...]
    messages: tuple[Message, ...]
    truncated: bool
    reward: float | None = None
    breakdown: Mapping[str, float | None] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_sampled(self) -> int:
        return sum(self.completion_mask)

    @property
    def reply(self) -> str:
        """Text of the last assistant message, "" if there is none."""
        return next((m.content for m in reversed(self.messages) if m.role == "assistant"), "")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, ids included: a trajectory can be replayed from it."""
        out = asdict(self)
        out["messages"] = [m.to_dict() for m in self.messages]
        return out


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """All episodes of one visit to one task; `group_id` is explicit and never guessed from the prompt. `worker`: the
    rollout worker that played it, "" for the learner itself."""

    group_id: str
    task: Task
    episodes: tuple[Episode, ...]
    worker: str = ""

    @property
    def is_zero_variance(self) -> bool:
        """All rewards exactly equal: the group teaches nothing under a centred advantage."""
        return len({e.reward for e in self.episodes if e.reward is not None}) <= 1

    @property
    def oldest_version(self) -> int | None:
        """Of the weights that sampled its tokens; None when nothing was sampled."""
        return min((t.weight_version for e in self.episodes for t in e.turns), default=None)
