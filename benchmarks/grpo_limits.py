"""How near decode and update come to what this machine can do; writes one JSON object to its standard output.

Measured limits, in this process with these threads:

    peak       the most FLOP/s that any float32 product here reached, through torch's default (MKL on x86), oneDNN or
               our own kernels
    bandwidth  the most bytes/s that reading or copying 512 MB reached

A decode step of B rows at context c must do

    flops = B (2 W + 4 c H D L)        W: weights of all products, output head included; H D: width of the queries
    bytes = 4 W + 4 B c 2 K D L        weights once, keys and values of every row

and its limit is max(flops / peak, bytes / bandwidth). An update of LoRA (rank r) over T packed tokens with N sampled
ones, whose activations are known, must do

    backward   T 2 W'                  gradients by the inputs; W' are the layers' weights; none by frozen weights
               T 2 r (3 in + 2 out)    summed over the adapted layers
               2.5 times attention     scores again, and the gradients by Q, K, V and the scores
    head       N 4 V E                 logits, and the gradient by the hidden states

and without known activations also T 2 W' and attention once, 4 H D L a token and token seen. Its limit is flops / peak.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.grpo_cases import GENERATIONS, PROMPTS
from benchmarks.grpo_worker import peak_memory
from chatgrpo.inference import products
from chatgrpo.inference.activation_tape import ActivationTape
from chatgrpo.inference.engine import GenerationRequest, SamplingParams
from chatgrpo.inference.loading import load
from chatgrpo.inference.torch_engine import TorchEngine
from chatgrpo.rollouts.episode import Episode
from chatgrpo.training.config import LoraConfig, TrainConfig
from chatgrpo.training.learner import Learner
from chatgrpo.training.memory_plan import ModelShape, plan
from chatgrpo.training.optimization import TorchOptimization
from chatgrpo.training.policy import Policy

PROMPT_TOKENS, NEW_TOKENS, RANK = 60, 64, 16
BATCH = PROMPTS * GENERATIONS
UPDATE_TOKENS = PROMPTS * (PROMPT_TOKENS + GENERATIONS * (NEW_TOKENS - 1))


def best(act: Callable[[], Any], times: int) -> float:
    """Seconds of the fastest call; the first one warms up."""
    act()
    found = []
    for _ in range(times):
        began = time.perf_counter()
        act()
        found.append(time.perf_counter() - began)
    return min(found)


@dataclass(frozen=True)
class Shape:
    """The model's dimensions, letters as in the module's docstring."""

    E: int
    F: int
    HD: int
    KD: int
    V: int
    L: int

    @classmethod
    def of(cls, config: Any) -> Shape:
        head_dim = config.hidden_size // config.num_attention_heads
        return cls(
            E=config.hidden_size,
            F=config.intermediate_size,
            HD=config.num_attention_heads * head_dim,
            KD=config.num_key_value_heads * head_dim,
            V=config.vocab_size,
            L=config.num_hidden_layers,
        )

    def fused(self) -> list[tuple[int, int]]:
        """(out, in) of the products of a layer as the fast path does them."""
        return [(self.HD + 2 * self.KD, self.E), (self.E, self.HD), (2 * self.F, self.E), (self.E, self.F)]

    def adapted(self) -> list[tuple[int, int]]:
        e, f, q, kv = self.E, self.F, self.HD, self.KD
        return [(q, e), (kv, e), (kv, e), (e, q), (f, e), (f, e), (e, f)]

    @property
    def layer_weights(self) -> int:
        return self.L * sum(out * into for out, into in self.fused())

    @property
    def weights(self) -> int:
        return self.layer_weights + self.V * self.E

    def decode_flops(self, batch: int, context: float) -> float:
        return batch * (2.0 * self.weights + 4.0 * context * self.HD * self.L)

    def decode_bytes(self, batch: int, context: float) -> float:
        return 4.0 * self.weights + 4.0 * batch * context * 2 * self.KD * self.L

    def attention_flops(self) -> float:
        """Forward over the update's packed tokens: each sees the prompt before it and its own reply."""
        prompt = PROMPT_TOKENS * (PROMPT_TOKENS + 1) / 2
        reply = sum(PROMPT_TOKENS + t + 1 for t in range(NEW_TOKENS - 1))
        return 4.0 * self.HD * self.L * PROMPTS * (prompt + GENERATIONS * reply)

    def update_flops(self, *, is_known: bool) -> float:
        lora = self.L * sum(3 * into + 2 * out for out, into in self.adapted())
        backward = UPDATE_TOKENS * 2.0 * (self.layer_weights + RANK * lora) + 2.5 * self.attention_flops()
        head = BATCH * NEW_TOKENS * 4.0 * self.V * self.E
        forward = UPDATE_TOKENS * 2.0 * self.layer_weights + self.attention_flops()
        return backward + head + (0.0 if is_known else forward)


def product_seconds(shape: Shape, rows: int) -> dict[str, float]:
    """All products of one forward over `rows` tokens, each with weights of its own as in the model."""
    packs = rows <= 64  # as the engine does; the update's products are plain
    found = {"mkl": 0.0, "ours": 0.0}
    for (out, into), count in [*((s, shape.L) for s in shape.fused()), ((shape.V, shape.E), 1)]:
        count = min(count, 6)
        scale = (shape.L / count) if out != shape.V else 1.0
        x = torch.randn(rows, into)
        plain = [torch.randn(out, into) for _ in range(count)]
        packed = [products.pack(w) if packs else w for w in plain]
        found["mkl"] += scale * best(partial(_products, torch.nn.functional.linear, x, plain), 5)
        found["ours"] += scale * best(partial(_products, products.linear, x, packed), 5)
    return found


def _products(product: Callable[..., Tensor], x: Tensor, weights: list[Tensor]) -> None:
    for weight in weights:
        product(x, weight)


def _onednn(x: Tensor, weight: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return product


def peak(flops_and_seconds: dict[str, tuple[float, float]]) -> dict[str, Any]:
    """The fastest of large square products and the given ones, in GFLOP/s."""
    found = {name: flops / seconds / 1e9 for name, (flops, seconds) in flops_and_seconds.items()}
    for side in (1024, 2048):
        a, b = torch.randn(side, side), torch.randn(side, side)
        others = (("onednn", _onednn),) if torch.backends.mkldnn.is_available() else ()
        for name, product in (("mkl", torch.nn.functional.linear), *others):
            found[f"{name} {side}^3"] = 2 * side**3 / best(partial(product, a, b), 7) / 1e9
    winner = max(found, key=found.__getitem__)
    return {"gflops": found[winner], "by": winner, "all": {k: round(v, 1) for k, v in found.items()}}


def bandwidth() -> dict[str, float]:
    """GB/s; a copy reads and writes."""
    a = torch.ones(128 * 2**20)
    b = torch.empty_like(a)
    size = a.numel() * 4 / 1e9
    return {"read": size / best(a.sum, 5), "copy": 2 * size / best(lambda: b.copy_(a), 5)}


class Bench:
    """Model, engine and learner as a job has them."""

    def __init__(self, name: str, home: Path) -> None:
        loaded = load(name, models_dir=home / "models")
        self.shape = Shape.of(loaded.model.config)
        config = TrainConfig(model=name, learning_rate=1e-6, lora=LoraConfig(r=RANK))
        self.policy = Policy(loaded.model, lora=config.lora, fused=True)
        assert self.policy.weights is not None
        self.engine = TorchEngine(
            self.policy.causal_lm, loaded.template, max_batch_size=BATCH, weights=self.policy.weights
        )
        room = BATCH * (PROMPT_TOKENS + NEW_TOKENS)
        self.policy.tape = ActivationTape(self.policy.weights, max_tokens=room)
        self.learner = Learner(config, self.policy, TorchOptimization(self.policy, config), total_updates=100)
        self.rounds = 0

    def planned_bytes(self) -> int:
        config = TrainConfig(
            prompts_per_step=PROMPTS,
            num_generations=GENERATIONS,
            max_prompt_length=PROMPT_TOKENS,
            max_completion_length=NEW_TOKENS,
            rollout_batch_size=BATCH,
            lora=LoraConfig(r=RANK),
        )
        return plan(config, ModelShape.from_config(self.policy.causal_lm.config.to_dict())).peak

    def requests(self) -> list[GenerationRequest]:
        return [
            GenerationRequest(
                request_id=f"{self.rounds}/{q}/{g}",
                prompt_ids=tuple(range(1000 + 100 * q, 1000 + 100 * q + PROMPT_TOKENS)),
                params=SamplingParams(max_tokens=NEW_TOKENS, seed=q * GENERATIONS + g, ignore_eos=True),
            )
            for q in range(PROMPTS)
            for g in range(GENERATIONS)
        ]

    def generate(self, *, taped: bool) -> tuple[list[float], list[Episode]]:
        """Seconds of every engine step, the first with the prefill, and what was said."""
        self.rounds += 1
        requests = self.requests()
        said: dict[str, list[tuple[int, float]]] = {r.request_id: [] for r in requests}
        seconds = []
        with self.engine.recording(self.policy.tape if taped else None):
            for request in requests:
                self.engine.add(request)
            while self.engine.has_work:
                began = time.perf_counter()
                events = self.engine.step()
                seconds.append(time.perf_counter() - began)
                for event in events:
                    said[event.request_id].append((event.token_id, event.logprob))
        return seconds, [episode(r.prompt_ids, said[r.request_id]) for r in requests]

    def update(self, episodes: list[Episode]) -> float:
        groups = [episodes[i : i + GENERATIONS] for i in range(0, BATCH, GENERATIONS)]
        advantages = [[1.0 if g % 2 else -1.0 for g in range(GENERATIONS)] for _ in groups]
        began = time.perf_counter()
        done = self.learner.update(groups, advantages)
        seconds = time.perf_counter() - began
        assert done.num_rows_trained == BATCH, f"{done.num_rows_trained} rows of {BATCH} were trained"
        self.engine.weights_changed(self.rounds)
        return seconds


def episode(prompt: tuple[int, ...], said: list[tuple[int, float]]) -> Episode:
    return Episode(
        token_ids=(*prompt, *(token for token, _ in said)),
        completion_mask=(False,) * len(prompt) + (True,) * len(said),
        logprobs=(0.0,) * len(prompt) + tuple(logprob for _, logprob in said),
        prompt_length=len(prompt),
        turns=(),
        messages=(),
        truncated=True,
    )


def measure(name: str, home: Path, rounds: int) -> dict[str, Any]:
    bench = Bench(name, home)
    shape = bench.shape
    decode_products = product_seconds(shape, BATCH)
    update_products = product_seconds(shape, 2048)
    top = peak(
        {
            f"{name} {rows} rows": (2.0 * rows * shape.weights, seconds)
            for rows, found in ((BATCH, decode_products), (2048, update_products))
            for name, seconds in found.items()
        }
    )
    speed = bandwidth()
    steps: list[float] = []
    prefill: list[float] = []
    taped_steps: list[float] = []
    known: list[float] = []
    again: list[float] = []
    for round_number in range(rounds + 1):  # the first warms up
        alone, episodes = bench.generate(taped=False)
        recomputed = bench.update(episodes)
        taped, episodes = bench.generate(taped=True)
        reused = bench.update(episodes)
        if round_number:
            prefill.append(alone[0])
            # Only steps in which nothing but decoding happened, all rows still there.
            steps.append(statistics.median(alone[1:]))
            taped_steps.append(statistics.median(taped[1:]))
            again.append(recomputed)
            known.append(reused)
    context = PROMPT_TOKENS + NEW_TOKENS / 2
    by_flops = shape.decode_flops(BATCH, context) / (top["gflops"] * 1e9)
    by_bytes = shape.decode_bytes(BATCH, context) / (max(speed.values()) * 1e9)
    return {
        "products": {"decode_s": decode_products, "update_s": update_products},
        "peak": top,
        "bandwidth": speed,
        "decode": {
            "limit_s": max(by_flops, by_bytes),
            "flops_limit_s": by_flops,
            "bytes_limit_s": by_bytes,
            "step_s": statistics.median(steps),
            "step_with_tape_s": statistics.median(taped_steps),
            "first_step_s": statistics.median(prefill),
        },
        "update": {
            "known_limit_s": shape.update_flops(is_known=True) / (top["gflops"] * 1e9),
            "known_s": statistics.median(known),
            "again_limit_s": shape.update_flops(is_known=False) / (top["gflops"] * 1e9),
            "again_s": statistics.median(again),
        },
    }


def memory(name: str, home: Path, rounds: int) -> dict[str, Any]:
    """What a process holds that does nothing but steps of the planned size, beside the plan."""
    bench = Bench(name, home)
    for _ in range(rounds):
        _, episodes = bench.generate(taped=True)
        bench.update(episodes)
    return {"held": peak_memory(), "planned": bench.planned_bytes()}


def main() -> None:
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)  # what libraries print goes to the log
        what, name, home, threads, rounds = sys.argv[1:]
        torch.set_num_threads(int(threads))
        measured = {"limits": measure, "memory": memory}[what](name, Path(home), int(rounds))
        out.write(json.dumps(measured))


if __name__ == "__main__":
    main()
