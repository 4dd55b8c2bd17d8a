"""Which runs can train together on one base. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence

from chatgrpo.errors import InvalidRequest
from chatgrpo.training.config import TrainConfig


def check_cohort(configs: Sequence[TrainConfig]) -> None:
    """Raises InvalidRequest naming the field that keeps these runs from sharing a base."""
    for config in configs:
        if config.lora is None:
            raise InvalidRequest("runs that share a base train adapters; give lora", "lora")
        if config.model != configs[0].model:
            raise InvalidRequest(f"{config.model!r} and {configs[0].model!r} are two bases; share one", "model")
        unshared: dict[str, bool] = {
            "num_workers": config.num_workers > 1,
            "engine": config.engine != "torch",
            "deepspeed": config.deepspeed is not None,
            "gradient_checkpointing": config.gradient_checkpointing,
            "fast_path": not config.fast_path,
            "max_staleness": config.max_staleness > 0,
            "rollout_workers": config.num_rollout_workers > 0,
            "dtype": config.dtype == "bfloat16",
            "report_to": "wandb" in config.report_to,  # one run a process
        }
        for name, is_wrong in unshared.items():
            if is_wrong:
                default = TrainConfig.model_fields[name].get_default(call_default_factory=True)
                raise InvalidRequest(
                    f"{getattr(config, name)!r} cannot share a base with other runs; write {default!r}", name
                )
