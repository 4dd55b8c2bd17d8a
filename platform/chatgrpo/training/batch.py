"""Episodes as packed micro-batches: no padding, and the prompt of a group only once.

T packed tokens of a micro-batch, N sampled tokens in it, R rows (episodes). Row indices are local to the micro-batch.

    group of 2 episodes:   p p p | a a a | b b        input_ids_T, each segment at its own positions
    row a sees p p p and itself, row b sees p p p and itself; the last p predicts the first token of both
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chatgrpo.inference.attention import SegmentLayout
from chatgrpo.rollouts.episode import Episode


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One episode with what the loss needs to know of it; `index` is its row in the whole generation batch."""

    index: int
    episode: Episode
    advantage: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """`source_N[n]` is the packed token whose hidden state predicts `target_N[n]`. `origins`: which tokens of which row
    the packed ones are, as (row, start, stop) in packed order."""

    rows: tuple[Row, ...]
    input_ids_T: Tensor
    positions_T: Tensor
    segments: tuple[tuple[range, range], ...]
    origins: tuple[tuple[int, int, int], ...]
    source_N: Tensor
    target_N: Tensor
    row_N: Tensor
    lengths_R: Tensor
    advantages_N: Tensor
    sampler_logprobs_N: Tensor

    def layout(self, device: torch.device | str) -> SegmentLayout:
        return SegmentLayout(list(self.segments), device)


def split(groups: Iterable[Sequence[Row]], max_tokens: int) -> list[list[list[Row]]]:
    """Micro-batches of whole groups with at most `max_tokens` packed tokens each; a group that is larger is cut between
    its rows (its prompt is then packed once per part). A single row may exceed the limit: rows are never cut."""
    batches: list[list[list[Row]]] = []
    room = 0
    for rows in groups:
        for part in _parts(rows, max_tokens):
            size = _packed_size(part)
            if not batches or size > room:
                batches.append([])
                room = max_tokens
            batches[-1].append(part)
            room -= size
    return batches


def _parts(rows: Sequence[Row], max_tokens: int) -> list[list[Row]]:
    parts: list[list[Row]] = []
    for row in rows:
        if parts and _packed_size([*parts[-1], row]) <= max_tokens:
            parts[-1].append(row)
        else:
            parts.append([row])
    return parts


def _packed_size(rows: Sequence[Row]) -> int:
    prompt = rows[0].episode.prompt_length
    return prompt + sum(len(r.episode.token_ids) - prompt - 1 for r in rows)


def pack(groups: Sequence[Sequence[Row]]) -> MicroBatch:
    """Packs rows whose group shares its prompt. The last token of a row predicts nothing and is left out."""
    ids: list[int] = []
    positions: list[int] = []
    segments: list[tuple[range, range]] = []
    origins: list[tuple[int, int, int]] = []
    source: list[int] = []
    target: list[int] = []
    row_of: list[int] = []
    sampler: list[float] = []
    rows = [row for group in groups for row in group]
    local = 0
    for group in groups:
        length = group[0].episode.prompt_length
        prompt = range(len(ids), len(ids) + length)
        ids += group[0].episode.token_ids[:length]
        positions += range(length)
        segments.append((range(0), prompt))
        origins.append((local, 0, length))
        for row in group:
            episode = row.episode
            assert episode.token_ids[:length] == group[0].episode.token_ids[:length], "a group shares one prompt"
            tail = range(len(ids), len(ids) + len(episode.token_ids) - length - 1)
            ids += episode.token_ids[length:-1]
            positions += range(length, len(episode.token_ids) - 1)
            if len(tail):
                segments.append((prompt, tail))
                origins.append((local, length, len(episode.token_ids) - 1))
            for t in range(length, len(episode.token_ids)):
                if episode.completion_mask[t]:
                    source.append(prompt.stop - 1 if t == length else tail.start + t - length - 1)
                    target.append(episode.token_ids[t])
                    sampler.append(episode.logprobs[t])
                    row_of.append(local)
            local += 1
    row_N = torch.tensor(row_of)
    return MicroBatch(
        rows=tuple(rows),
        input_ids_T=torch.tensor(ids),
        positions_T=torch.tensor(positions),
        segments=tuple(segments),
        origins=tuple(origins),
        source_N=torch.tensor(source),
        target_N=torch.tensor(target),
        row_N=row_N,
        lengths_R=torch.tensor([r.episode.num_sampled for r in rows]),
        advantages_N=torch.tensor([r.advantage for r in rows], dtype=torch.float32)[row_N],
        sampler_logprobs_N=torch.tensor(sampler, dtype=torch.float32),
    )
