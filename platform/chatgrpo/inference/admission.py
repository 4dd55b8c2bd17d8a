"""When waiting requests join the batch: a forward for one newcomer reads all weights and holds the others up.

Conversations that go on come back one by one, as their replies end. Who wants throughput lets them wait for company,
for a few steps of those that run.
"""

from __future__ import annotations

from dataclasses import dataclass

# Newcomers that are company enough: this share of the rows that they hold up.
_ENOUGH = 0.25
# Steps that an episode waits at most: nobody waits for its next word.
ROLLOUT_PATIENCE = 4


@dataclass(frozen=True, slots=True)
class AdmissionFacts:
    """`num_ready`: waiting requests for which the batch has room; `steps_waited`: since the first could join."""

    num_rows: int
    num_ready: int
    steps_waited: int


def decide(facts: AdmissionFacts, patience: int) -> bool:
    """Whether those who are ready join now. `patience`: steps that they wait at most."""
    if not facts.num_ready:
        return False
    return facts.steps_waited >= patience or facts.num_ready >= _ENOUGH * facts.num_rows
