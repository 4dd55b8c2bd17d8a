"""Loads a model by name: weights, tokenizer, chat template, ready for our attention layouts.

Built-in models are made once and kept as safetensors in the model cache, from where they load in about a second.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from chatgrpo.inference import models
from chatgrpo.inference.attention import ATTENTION
from chatgrpo.inference.chat_template import ChatTemplate
from chatgrpo.inference.models import ModelRef, Source
from chatgrpo.inference.vector_math import resolve_kernels

logger = logging.getLogger(__name__)

TINY_ALPHABET = "\n !\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~"
TINY_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """`model` is a Hugging Face causal LM (adapters merged) with our attention function; `name` as asked for."""

    name: str
    model: Any
    template: ChatTemplate


def load(
    name: str,
    *,
    models_dir: Path,
    runs_dir: Path | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> LoadedModel:
    """Raises what `models.find` raises."""
    resolve_kernels()
    ref = models.find(name, runs_dir=runs_dir)
    if ref.adapter is not None:
        assert ref.base is not None
        base = load(ref.base, models_dir=models_dir, runs_dir=runs_dir, dtype=dtype, device=device)
        from peft import PeftModel

        merged = PeftModel.from_pretrained(base.model, ref.adapter).merge_and_unload()
        return LoadedModel(name, merged.eval(), base.template)
    folder = model_folder(ref, models_dir)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=ATTENTION)
    return LoadedModel(
        name, model.to(device).eval(), ChatTemplate(tokenizer, _eos_ids(model.config, model.generation_config))
    )


def model_config(name: str, models_dir: Path) -> dict[str, Any]:
    """The fields of a base model's `config.json`. Raises what `models.find` raises."""
    config: dict[str, Any] = AutoConfig.from_pretrained(model_folder(models.find(name), models_dir)).to_dict()
    return config


def load_template(folder: Path | str) -> ChatTemplate:
    """The chat template of the model in a folder, without its weights."""
    config = AutoConfig.from_pretrained(folder)
    try:
        generation: Any = GenerationConfig.from_pretrained(folder)
    except OSError:  # the file is optional
        generation = None
    return ChatTemplate(AutoTokenizer.from_pretrained(folder), _eos_ids(config, generation))


def _eos_ids(config: Any, generation: Any) -> list[int] | None:
    eos = generation.eos_token_id if generation else None
    eos = config.eos_token_id if eos is None else eos
    return None if eos is None else [eos] if isinstance(eos, int) else list(eos)


def model_folder(ref: ModelRef, models_dir: Path) -> Path | str:
    """Folder or hub id of a model's whole weights; `ref` is no adapter."""
    if ref.source is Source.BUILT_IN:
        makers: dict[str, Callable[[Path], None]] = {models.SMOLLM2: _make_smollm2, models.TINY: _make_tiny}
        return _made_once(models_dir / ref.name, makers[ref.name])
    return ref.path or ref.name


def _made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Makes a cache folder beside its place and renames it in, so that no process ever reads half a model."""
    if (folder / "config.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    logger.info("preparing model=%s once in %s", folder.name, folder)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        make(scratch)
        try:
            os.rename(scratch, folder)
        except OSError:
            if not (folder / "config.json").is_file():
                raise
            # Another process was first; its copy is as good.
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _make_smollm2(folder: Path) -> None:
    gguf = models.smollm2_gguf()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # transformers refuses to save a model that still says it is quantised, although these weights are plain float32.
    model.hf_quantizer = None
    model.is_quantized = False
    model.quantization_method = None
    del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def _make_tiny(folder: Path) -> None:
    """A character tokenizer and a Llama of 4 layers, the same on every machine (seed 0, init std 0.02)."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.decoders import Fuse
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split

    specials = ["<|pad|>", "<|end|>", "<|unknown|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]
    vocabulary = {token: i for i, token in enumerate([*specials, *TINY_ALPHABET])}
    raw = Tokenizer(WordLevel(vocabulary, unk_token="<|unknown|>"))  # noqa: S106
    raw.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
    raw.decoder = Fuse()
    tokenizer: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=raw,
        pad_token="<|pad|>",  # noqa: S106
        eos_token="<|end|>",  # noqa: S106
        unk_token="<|unknown|>",  # noqa: S106
        additional_special_tokens=specials[3:],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TINY_TEMPLATE
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.02,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=vocabulary["<|end|>"],
        pad_token_id=vocabulary["<|pad|>"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
