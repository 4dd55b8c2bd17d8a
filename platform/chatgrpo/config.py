"""Settings of the platform itself: one YAML file, overridden by environment variables `CHATGRPO_*`.

Importing this loads neither torch nor ray.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from chatgrpo.errors import InvalidRequest
from chatgrpo.gateway.config import GatewayConfig
from chatgrpo.inference.vllm_config import VllmConfig
from chatgrpo.monitoring.advice_config import AdviceConfig
from chatgrpo.state.config import StateConfig


class Strict(BaseModel):
    """Base of every configuration section: unknown fields are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def load_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises InvalidRequest with file and line when it is missing or broken."""
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidRequest(f"cannot read {path}: {error.strerror}; give the path of a YAML file") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise InvalidRequest(f"{where}: not valid YAML: {getattr(error, 'problem', error)}") from error
    if not isinstance(data or {}, dict):
        raise InvalidRequest(f"{path}: expected a mapping of field names, got {type(data).__name__}")
    return data or {}


class DecodingPreset(Strict):
    """How a reply is sampled when a chat request names this preset as its `strategy`."""

    temperature: float = Field(0.7, ge=0, le=10, description="0 is greedy.")
    max_tokens: int = Field(512, ge=1, le=32768, description="Longest reply, in tokens.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus sampling; 1 is off.")
    top_k: int = Field(0, ge=0, description="Top-k sampling; 0 is off.")


def _presets() -> dict[str, DecodingPreset]:
    return {
        "default": DecodingPreset(),
        "advanced": DecodingPreset(top_p=0.9, top_k=50),
        "precise": DecodingPreset(temperature=0.0),
        "creative": DecodingPreset(temperature=1.0, top_p=0.95),
    }


class PlatformConfig(BaseSettings):
    """Where things live and how the service listens. `configs/platform.yaml` shows every field."""

    model_config = SettingsConfigDict(env_prefix="CHATGRPO_", env_nested_delimiter="__", extra="forbid", frozen=True)

    home: Path = Field(Path(".chatgrpo"), description="Folder for runs, databases and the model cache.")
    host: str = Field("127.0.0.1", description="Address to listen on; any other than loopback needs API keys.")
    port: int = Field(8002, ge=1, le=65535, description="HTTP port of the API.")
    ingress: Literal["serve", "haproxy"] = Field(
        "serve", description="Ray Serve's own proxy, or HAProxy: several times the requests; always asks for keys."
    )
    default_model: str = Field("smollm2-135m-instruct", description="The model that chat uses when none is named.")
    redis_url: str | None = Field(None, description="redis://... for shared state; empty: SQLite under `home`.")
    jobs_config: Path | None = Field(None, description="YAML file with the policy of the queue; empty: its defaults.")
    plugins: list[str] = Field(
        default_factory=list, description="Python modules or .py files that register rewards, tools, environments."
    )
    max_models_per_replica: int = Field(2, ge=1, description="Models one chat replica keeps loaded (least recent out).")
    max_adapters_per_replica: int = Field(
        16, ge=1, description="Jobs' LoRA adapters it keeps on them; they share the weights of their base."
    )
    chat_engine: Literal["torch", "vllm"] = Field(
        "torch", description="What writes replies: ours, or vLLM in a process beside the replica (for GPU nodes)."
    )
    vllm: VllmConfig = Field(
        default_factory=VllmConfig,
        description="Read with chat_engine vllm; each loaded model has its own share of the memory.",
    )
    chat_prefix_mb: int = Field(
        256, ge=0, description="Memory of each loaded model for what prompts begin with, so that it is computed once."
    )
    chat_threads: int = Field(1, ge=1, description="CPU threads of one chat replica.")
    chat_weight: float = Field(
        1.0, gt=0, description="Share of this node's replicas under `gateway.balancing: weighted`."
    )
    decoding_presets: dict[str, DecodingPreset] = Field(
        default_factory=_presets, description="What `strategy` in a chat request can name; `default` must be there."
    )
    max_history_tokens: int = Field(
        8192,
        ge=1,
        description="Newest part of a conversation that the model is given; its context window bounds it too.",
    )
    max_body_bytes: int = Field(4 * 1024 * 1024, ge=1, description="Largest request body that is accepted.")
    gateway: GatewayConfig = Field(default_factory=GatewayConfig, description="Keys, hosts, routes and their limits.")
    state: StateConfig = Field(default_factory=StateConfig, description="Conversations: guarantees, cache, limits.")
    alerts_config: Path | None = Field(None, description="YAML file with alert rules; empty: those that are shipped.")
    advice: AdviceConfig = Field(default_factory=AdviceConfig, description="What scaling is advised, and prices.")
    otlp_endpoint: str | None = Field(
        None, pattern=r"^https?://\S+$", description="Collector for traces, e.g. http://127.0.0.1:4318; empty: none."
    )
    trace_sample_ratio: float = Field(1.0, ge=0, le=1, description="Share of new traces that are kept.")
    log_style: Literal["text", "json"] = Field("text", description="Log lines as key=value text or as JSON.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe level logged.")

    @field_validator("decoding_presets")
    @classmethod
    def _has_default(cls, presets: dict[str, DecodingPreset]) -> dict[str, DecodingPreset]:
        if "default" not in presets:
            raise ValueError(f"needs a preset named `default`; has {', '.join(presets) or 'none'}")
        return presets

    @property
    def runs_dir(self) -> Path:
        """Absolute: runs are written by processes with other working directories."""
        return self.home.expanduser().resolve() / "runs"

    @property
    def models_dir(self) -> Path:
        return self.home.expanduser().resolve() / "models"

    @property
    def state_db(self) -> Path:
        return self.home.expanduser().resolve() / "state.db"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment variables win over the YAML file, whose values arrive as keyword arguments."""
        return env_settings, init_settings


def load_platform_config(path: str | Path | None = None) -> PlatformConfig:
    """Reads `path`, else the file named by CHATGRPO_CONFIG, else defaults and environment variables alone.

    Raises InvalidRequest naming the file and the field. `home` of the result is absolute, because the processes of the
    platform have other working directories."""
    path = path or os.environ.get("CHATGRPO_CONFIG")
    try:
        config = PlatformConfig(**(load_yaml(path) if path else {}))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InvalidRequest(f"{path or 'environment variables CHATGRPO_*'}: {first['msg']}", field) from error
    return config.model_copy(update={"home": config.home.expanduser().resolve()})
