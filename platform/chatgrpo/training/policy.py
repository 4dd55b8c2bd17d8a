"""The policy as the learner sees it: a packed micro-batch in, log-probs of its sampled tokens out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from chatgrpo.errors import InvalidRequest
from chatgrpo.inference.activation_tape import ActivationTape
from chatgrpo.inference.llama_weights import LlamaWeights
from chatgrpo.training.batch import MicroBatch
from chatgrpo.training.config import LoraConfig
from chatgrpo.training.fused_policy import Scratch, hidden_states, remember
from chatgrpo.training.token_logprobs import token_logprobs

# Models that change their logits after the output embedding; the chunked head would miss it.
_LOGIT_TRANSFORMS = ("final_logit_softcapping", "logits_scaling", "logit_scale")


class Policy(nn.Module):
    """`model` is a Hugging Face causal LM with our attention function; with `lora` its base weights are frozen.

    `compute_dtype` other than float32 runs the forward under autocast; weights stay as they are. `fused` takes the fast
    path where the model is Llama-shaped; its gradients are added to `.grad` without hooks, so nothing may shard or
    flatten the parameters. With a `tape` of the rollout, rows that are on it need no forward. `base`: the fused weights
    of the model that others share with this one (see `SharedBase`)."""

    def __init__(
        self,
        model: Any,
        *,
        lora: LoraConfig | None = None,
        compute_dtype: torch.dtype = torch.float32,
        fused: bool = False,
        base: LlamaWeights | None = None,
    ) -> None:
        super().__init__()
        for name in _LOGIT_TRANSFORMS:
            if getattr(model.config, name, None) not in (None, 1, 1.0):
                raise InvalidRequest(
                    f"model type {model.config.model_type!r} uses {name}, which is not supported", "model"
                )
        self.is_lora = lora is not None
        self.compute_dtype = compute_dtype
        self.model = _with_adapter(model, lora) if lora else model
        self._reference: list[Any] = []  # in a list: not a submodule, so neither trained nor saved
        # None: the general path through the model's own modules.
        self.weights = LlamaWeights.of(self.causal_lm, base) if fused and compute_dtype == torch.float32 else None
        self.tape: ActivationTape | None = None
        self._scratch = Scratch()

    @property
    def causal_lm(self) -> Any:
        """The model with whatever adapter layers it has, as the engine runs it."""
        return self.model.get_base_model() if self.is_lora else self.model

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        device = next(self.parameters()).device.type
        return torch.autocast(device, self.compute_dtype, enabled=self.compute_dtype != torch.float32)

    def forward(self, batch: MicroBatch, temperature: float) -> tuple[Tensor, Tensor]:
        """(logprobs_N, entropy_N) of softmax(logits / temperature) at the sampled tokens, float32."""
        if self.weights is None:
            return self._logprobs(self.causal_lm, batch, temperature)
        remembered = None if self.tape is None else remember(self.tape, batch)
        recording = remembered.recording if remembered else self._scratch.record(self.weights, batch)
        hidden_ND = hidden_states(self.weights, batch, recording)
        known = (remembered.logprobs_N, remembered.entropy_N) if remembered else None
        return self._token_logprobs(self.causal_lm, hidden_ND, batch, temperature, known)

    def update_begins(self) -> None:
        """What only speaking needs gives its memory to the update."""
        if self.weights is not None:
            self.weights.release()

    def weights_changed(self) -> None:
        """After every change of the parameters: what was computed from the old ones is forgotten."""
        if self.weights is not None:
            self.weights.release()
        self.forget_activations()

    def forget_activations(self) -> None:
        """What was on the tape is computed again; its memory waits for the next rollout."""
        if self.tape is not None:
            self.tape.clear()

    def release_activations(self) -> None:
        """As `forget_activations`, and the memory goes back."""
        self._scratch = Scratch()
        if self.tape is not None:
            self.tape.release()

    def keep_reference(self) -> None:
        """Remembers the present weights for `reference_logprobs`; LoRA needs no copy, its base is the reference."""
        if not self.is_lora:
            self._reference = [deepcopy(self.model).requires_grad_(False)]

    @torch.no_grad()
    def reference_logprobs(self, batch: MicroBatch, temperature: float) -> Tensor:
        if self.is_lora:
            with self.model.disable_adapter():
                return self._logprobs(self.causal_lm, batch, temperature)[0]
        return self._logprobs(self._reference[0], batch, temperature)[0]

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.named_parameters() if p.requires_grad)

    def _logprobs(self, causal_lm: Any, batch: MicroBatch, temperature: float) -> tuple[Tensor, Tensor]:
        device = next(causal_lm.parameters()).device
        with self.autocast():
            hidden_TD = causal_lm.get_decoder()(
                input_ids=batch.input_ids_T[None].to(device),
                position_ids=batch.positions_T[None].to(device),
                use_cache=False,
                layout=batch.layout(device),
            ).last_hidden_state[0]
            return self._token_logprobs(causal_lm, hidden_TD[batch.source_N.to(device)], batch, temperature)

    def _token_logprobs(
        self,
        causal_lm: Any,
        hidden_ND: Tensor,
        batch: MicroBatch,
        temperature: float,
        known: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        weight_VD, bias_V = _head(causal_lm.get_output_embeddings())
        target_N = batch.target_N.to(hidden_ND.device)
        return token_logprobs(hidden_ND, weight_VD, bias_V, target_N, scale=1.0 / temperature, known=known)


def _head(head: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the output embedding, with its adapter's part if it has one that is switched on."""
    base = getattr(head, "base_layer", head)
    weight_VD: Tensor = base.weight
    if base is not head and not head.disable_adapters:
        for name in head.active_adapters:
            weight_VD = weight_VD + head.get_delta_weight(name)
    return weight_VD, base.bias


def _with_adapter(model: Any, lora: LoraConfig) -> Any:
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model

    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    try:
        return get_peft_model(
            model, PeftLoraConfig(r=lora.r, lora_alpha=lora.alpha, target_modules=targets, task_type="CAUSAL_LM")
        )
    except ValueError as error:
        raise InvalidRequest(
            f"{lora.target_modules!r} does not fit this model: {error}", "lora.target_modules"
        ) from error
