"""One person chats with SmolLM2-135M: tokens a second with and without drafts, time to the first token with and without
what prompts have in common. Both sides run in this process, interleaved; medians."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.report import figure, write_report
from chatgrpo.inference.engine import GenerationRequest, SamplingParams
from chatgrpo.inference.loading import load
from chatgrpo.inference.models import SMOLLM2
from chatgrpo.inference.torch_engine import TorchEngine
from chatgrpo.messages import Message, Role, user

ROUNDS = 3
NEW_TOKENS = 96
NOTE = (
    "def total_price(items, tax_rate):\n    total = 0\n    for item in items:\n"
    "        total += item.price * item.count\n"
    "    return total * (1 + tax_rate)\n\ndef total_weight(items):\n    total = 0\n    for item in items:\n"
    "        total += item.weight * item.count\n    return total\n"
)
COPY = (
    f"Repeat this code exactly, without any comment:\n\n{NOTE}",
    "Repeat this list: Anna Schmidt (Berlin), Bruno Meyer (Hamburg), Clara Weber (Munich), David Fischer (Cologne), "
    "Emma Wagner (Stuttgart), Felix Becker (Leipzig). Repeat it once more.",
)
FREE = ("Write a short story about a lighthouse keeper.", "What should I think of before I buy a used bicycle?")
SYSTEM = "You are the assistant of a bicycle shop. " + " ".join(
    f"Rule {i}: bicycles of model {i} have {i + 3} gears, cost {100 + 7 * i} euros and are delivered within {i} days."
    for i in range(1, 17)
)
QUESTIONS = tuple(f"How much is the bicycle of model {i}, and when would it be here?" for i in range(1, 9))


def reply(engine: TorchEngine, name: str, prompt: Sequence[int], params: SamplingParams) -> tuple[float, float, int]:
    """(seconds to the first token, tokens a second after it, tokens)."""
    engine.add(GenerationRequest(request_id=name, prompt_ids=tuple(prompt), params=params))
    began = time.perf_counter()
    num_tokens, first = 0, 0.0
    while engine.has_work:
        num_tokens += len(engine.step())
        first = first or time.perf_counter()
    return first - began, (num_tokens - 1) / (time.perf_counter() - first), num_tokens


def main() -> None:
    loaded = load(SMOLLM2, models_dir=Path(".chatgrpo/models"))
    make = {
        "plain": lambda: TorchEngine(loaded.model, loaded.template),
        "drafts": lambda: TorchEngine(loaded.model, loaded.template, drafts=True),
    }
    figures = {}
    for kind, texts, goal in (("copy", COPY, 1.2), ("free", FREE, 0.95)):
        rates: dict[str, list[float]] = {side: [] for side in make}
        engines = {side: build() for side, build in make.items()}
        for index in range(ROUNDS):
            for number, text in enumerate(texts):
                prompt = loaded.template.prompt_ids([user(text)])
                params = SamplingParams(
                    max_tokens=NEW_TOKENS, temperature=0.7 * (index % 2), seed=index, ignore_eos=True
                )
                for side, engine in engines.items():
                    rates[side].append(reply(engine, f"{index}-{number}", prompt, params)[1])
        medians = {side: statistics.median(found) for side, found in rates.items()}
        ratios = [a / b for a, b in zip(rates["drafts"], rates["plain"], strict=True)]
        figures[f"drafts_speedup_{kind}"] = figure(
            statistics.median(ratios),
            "ratio",
            at_least=goal,
            tokens_per_s={side: round(rate, 1) for side, rate in medians.items()},
            ratios=[round(r, 2) for r in ratios],
        )
    first: dict[str, list[float]] = {"cold": [], "known": []}
    known = TorchEngine(loaded.model, loaded.template, prefix_bytes=256 * 10**6)
    cold = TorchEngine(loaded.model, loaded.template)
    for index, question in enumerate(QUESTIONS):
        prompt = loaded.template.prompt_ids([Message(role=Role.SYSTEM, content=SYSTEM), user(question)])
        for side, engine in (("cold", cold), ("known", known)):
            first[side].append(reply(engine, f"q{index}", prompt, SamplingParams(max_tokens=4, temperature=0.0))[0])
    # The first conversation computes what the others find.
    seconds = {side: statistics.median(found[1:]) for side, found in first.items()}
    figures["first_token_speedup"] = figure(
        seconds["cold"] / seconds["known"],
        "ratio",
        prompt_tokens=len(prompt),
        ms={side: round(1000 * s, 1) for side, s in seconds.items()},
        prefixes_mb=round(known._known_prefixes.num_bytes / 1e6, 1),
    )
    write_report("chat_engine", figures)


if __name__ == "__main__":
    main()
