"""One training job as data: the same object in a YAML file and in an HTTP request. Free of torch and ray.

Names follow TRL's GRPOConfig where the idea is the same.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from chatgrpo.config import Strict
from chatgrpo.environments.config import EnvironmentConfig, ReasoningGymConfig
from chatgrpo.inference.vllm_config import VllmConfig
from chatgrpo.rewards.config import RewardConfig, VerifierReward


def _verifier_alone() -> list[RewardConfig]:
    return [VerifierReward()]


LossType = Literal["grpo", "dr_grpo", "dapo", "bnpo", "gspo", "cispo", "sapo"]


class LoraConfig(Strict):
    """Low-rank adapters (peft). The base model with the adapter off is the KL reference."""

    r: int = Field(16, ge=1, description="Rank.")
    alpha: int = Field(32, ge=1, description="Scale is alpha / r.")
    dropout: float = Field(0.0, ge=0, le=0, description="Only 0: dropout would make sampler and learner disagree.")
    target_modules: Literal["all-linear"] | list[str] = Field("all-linear", description="Layers that get an adapter.")


class EarlyStopping(Strict):
    """Ends a run whose held-out reward no longer rises."""

    patience: int = Field(5, ge=1, description="Evaluations without improvement before the run ends.")
    min_delta: float = Field(0.0, ge=0, description="Smallest rise of the held-out reward that counts.")


class Divergence(Strict):
    """Ends a run whose policy has broken. The best evaluated checkpoint is published; without one the run fails."""

    max_kl: float | None = Field(
        None, gt=0, description="Mean KL to the reference, nats a token, that is too far; needs beta. Empty: off."
    )
    min_entropy: float | None = Field(
        None, gt=0, description="Mean entropy, nats a token, below which the policy has collapsed; empty: off."
    )
    entropy_reward: float = Field(
        0.9, description="Mean reward of a step from which low entropy is mastery, not collapse."
    )
    patience: int = Field(
        3, ge=1, description="Bad steps in a row that end the run; losses or gradients that are not finite count too."
    )


class Resources(Strict):
    """What one worker of the run reserves in Ray."""

    cpus_per_worker: float = Field(1.0, gt=0, description="Logical CPUs.")
    gpus_per_worker: float | None = Field(None, ge=0, description="GPUs; empty: one if the cluster has any, else 0.")
    memory_gb_per_worker: float | None = Field(None, gt=0, description="Memory in GB; empty: not reserved.")
    threads_per_worker: int | None = Field(
        None, ge=1, description="torch threads; empty: the machine's cores / workers."
    )


class TrainConfig(Strict):
    """Everything a run needs. Defaults run on a laptop CPU."""

    experiment_name: str = Field(
        "grpo", min_length=1, max_length=128, pattern=r"^[\w][\w .\-]*$", description="For people."
    )
    model: str = Field(
        "smollm2-135m-instruct", min_length=1, description="Registry name, Hugging Face id, folder or job id."
    )
    environment: EnvironmentConfig = Field(
        default_factory=ReasoningGymConfig, description="Where the policy practises."
    )
    rewards: list[RewardConfig] = Field(
        default_factory=_verifier_alone, min_length=1, description="Weighted rubric; the reward is the sum."
    )
    seed: int = Field(0, ge=0, description="Seeds data order, sampling and initialisation.")
    priority: int = Field(1, ge=0, le=100, description="Higher starts earlier.")

    # Rollouts
    prompts_per_step: int = Field(8, ge=1, description="Different tasks per step, over all workers.")
    num_generations: int = Field(8, ge=2, description="Episodes per task: the group size G.")
    max_prompt_length: int = Field(
        512, ge=1, description="Tokens; a longer opening prompt fails the run with its task id."
    )
    max_completion_length: int = Field(256, ge=1, description="Sampled tokens per reply.")
    max_episode_length: int = Field(
        2048, ge=2, description="Tokens of a whole episode, prompt and tool turns included."
    )
    temperature: float = Field(1.0, gt=0, description="Sampling temperature; log-probs use the same.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus sampling; 1 is off.")
    top_k: int = Field(0, ge=0, description="Top-k sampling; 0 is off.")
    stop: list[str] = Field(default_factory=list, description="Strings that end a reply.")
    engine: Literal["torch", "vllm"] = Field(
        "torch", description="What generates: ours, in the worker's own process, or vLLM beside it (for GPU clusters)."
    )
    vllm: VllmConfig = Field(default_factory=VllmConfig, description="Read with engine vllm.")
    rollout_batch_size: int = Field(64, ge=1, description="Episodes that are decoded at once on one worker.")
    reward_timeout_s: float = Field(30.0, gt=0, description="A reward that takes longer counts as failed.")
    environment_timeout_s: float = Field(
        60.0, gt=0, description="An environment step that takes longer fails its episode."
    )
    max_episode_retries: int = Field(
        1, ge=0, description="Fresh tries of a failed episode before its group is dropped."
    )
    dynamic_sampling: bool = Field(False, description="Replace groups of equal rewards by new tasks (DAPO).")
    max_resample_rounds: int = Field(3, ge=1, description="Bound on extra rounds of dynamic sampling per step.")

    # Algorithm
    loss_type: LossType = Field("dapo", description="Surrogate and its aggregation.")
    advantage_estimator: Literal["grpo", "rloo", "gdpo", "reinforce_pp"] = Field(
        "grpo", description="Baseline per group."
    )
    scale_rewards: Literal["group", "batch", "none"] = Field(
        "group", description="grpo: divisor of the centred reward; the other estimators define their own scale."
    )
    importance_sampling_level: Literal["token", "sequence"] = Field(
        "token", description="Ratio per token or per sequence; loss_type gspo is always per sequence."
    )
    num_iterations: int = Field(1, ge=1, description="Optimizer passes over each batch of rollouts (mu).")
    epsilon: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="Lower clip range; also the upper one unless epsilon_high is set. Per sequence, 3e-4 is usual.",
    )
    epsilon_high: float | None = Field(
        None,
        gt=0,
        description="Upper clip range (DAPO clip-higher). For cispo the cap of the ratio itself, above 1; empty: 5.",
    )
    delta: float | None = Field(
        None,
        gt=1,
        description="Two-sided clip (dual clip): largest ratio that counts when the advantage is negative; "
        "above 1 + upper clip range.",
    )
    sapo_temperature_pos: float = Field(1.0, gt=0, description="sapo: steepness of the gate, positive advantages.")
    sapo_temperature_neg: float = Field(1.05, gt=0, description="sapo: steepness of the gate, other advantages.")
    beta: float = Field(0.0, ge=0, description="KL coefficient; 0 needs no reference model.")
    kl_estimator: Literal["k1", "k2", "k3"] = Field("k3", description="Estimator of the KL to the reference.")
    use_bias_correction_kl: bool = Field(
        True, description="Multiply the KL by the ratio: right off-policy, and what gives k1 and k3 the true gradient."
    )
    entropy_coef: float = Field(0.0, ge=0, description="Weight of the entropy bonus.")
    sampler_correction: Literal["none", "truncate", "mask", "decoupled"] | None = Field(
        None,
        description="Weight by the ratio learner/sampler: clamped (TIS), 0 outside its bounds (MIS), or as it is "
        "(decoupled PPO). Empty: truncate when max_staleness is above 0, else none.",
    )
    sampler_correction_level: Literal["token", "sequence"] = Field(
        "token", description="That ratio per token, or multiplied over the sequence."
    )
    sampler_correction_cap: float = Field(2.0, gt=1, description="Upper bound of that ratio (truncate, mask).")
    sampler_correction_floor: float = Field(
        0.0, ge=0, lt=1, description="Lower bound of that ratio (truncate, mask); 0 is none."
    )
    off_policy_mask_threshold: float | None = Field(
        None,
        gt=0,
        description="Leave out the policy gradient of negative-advantage sequences whose log-prob has fallen by more "
        "nats a token than this since sampling; empty is off.",
    )
    mask_truncated_completions: bool = Field(False, description="Episodes cut by a length limit teach nothing.")
    overlong_buffer: int = Field(
        0, ge=0, description="DAPO soft length penalty over the last so many tokens; 0 is off."
    )

    # Optimisation
    max_steps: int | None = Field(None, ge=1, description="Steps; empty: num_epochs over the tasks.")
    num_epochs: int = Field(1, ge=1, description="Passes over the tasks when max_steps is empty.")
    learning_rate: float = Field(1e-5, gt=0, description="Peak learning rate of the optimizer.")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="torch optimizer.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay.")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's first moment decay.")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW's second moment decay.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradient clipping by global norm.")
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = Field("constant", description="After warm-up.")
    warmup_steps: int = Field(0, ge=0, description="Linear warm-up from 0.")
    micro_batch_tokens: int = Field(4096, ge=1, description="Packed tokens per forward and backward.")
    gradient_checkpointing: bool = Field(False, description="Recompute activations: less memory, about 1/3 slower.")
    fast_path: bool = Field(
        True,
        description="Fused products and a hand-written backward for Llama-shaped models in float32; off, and for all "
        "other models: the model's own modules.",
    )
    reuse_activations_gb: float = Field(
        2.0,
        ge=0,
        description="Memory for activations of the rollout, so that the fast path's update needs no forward; what does "
        "not fit is computed again.",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Compute type; auto: bfloat16 on GPUs that have it, else float32."
    )
    lora: LoraConfig | None = Field(None, description="Adapters; empty: full fine-tuning.")

    # Evaluation and checkpoints
    eval_steps: int | None = Field(
        None, ge=1, description="Steps between held-out evaluations; empty: start and end only."
    )
    num_eval_prompts: int = Field(200, ge=0, description="Held-out tasks per evaluation; 0: no evaluation.")
    save_steps: int | None = Field(50, ge=1, description="Steps between checkpoints; empty: only the final model.")
    save_total_limit: int = Field(2, ge=1, description="Newest checkpoints that are kept.")
    save_best_limit: int = Field(1, ge=0, description="Best checkpoints by held-out reward that are kept beside them.")
    save_keep_every: int | None = Field(
        None, ge=1, description="Checkpoints of steps that are a multiple of this are kept for good; empty: none."
    )
    load_best_model_at_end: bool = Field(
        True,
        description="Publish the policy of the best held-out evaluation (the later of equals), not the last one. Each "
        "new best of eval_steps is saved; without eval_steps the last policy is published.",
    )
    early_stopping: EarlyStopping | None = Field(None, description="Needs eval_steps.")
    divergence: Divergence = Field(default_factory=Divergence, description="When a run counts as broken.")

    # Rollouts beside the learner
    max_staleness: int = Field(
        0,
        ge=0,
        le=16,
        description="Updates that the weights behind a trained token may be old. 0: each step waits for its rollouts; "
        "above: rollout workers play ahead while the learner learns.",
    )
    rollout_workers: int | None = Field(
        None,
        ge=0,
        description="Inference engines beside each training worker; empty: 1 when max_staleness is above 0, else 0 "
        "(the learner's own engine plays, and its update reuses the activations).",
    )
    rollout_resources: Resources = Field(default_factory=Resources, description="Per rollout worker.")
    rollout_restarts: int = Field(
        3, ge=0, description="Times that a lost rollout worker is started again, counted for each."
    )
    rollout_timeout_s: float = Field(
        120.0, gt=4, description="A rollout worker that says nothing for so long counts as lost; it speaks every 2 s."
    )
    rollout_start_timeout_s: float = Field(
        600.0, gt=0, description="The run fails when no rollout worker has come up for so long."
    )

    # Where it runs
    num_workers: int = Field(1, ge=1, description="Ray Train workers.")
    min_workers: int | None = Field(
        None, ge=1, description="Fewest workers it may run with when room is short; empty: num_workers."
    )
    resources: Resources = Field(default_factory=Resources, description="Per worker.")
    deepspeed: str | dict[str, Any] | None = Field(
        None, description="DeepSpeed configuration: a JSON file or a mapping."
    )
    report_to: list[Literal["mlflow", "wandb"]] = Field(default_factory=list, description="Trackers beside JSONL.")
    max_runtime_hours: float | None = Field(None, gt=0, description="The run is stopped after this long.")

    @property
    def tape_gb(self) -> float:
        """Memory for activations of the rollout; only our engine in the learner's own process leaves any."""
        return self.reuse_activations_gb if self.engine == "torch" and not self.num_rollout_workers else 0.0

    @property
    def ratio_level(self) -> Literal["token", "sequence"]:
        """Level of the importance ratio that the loss really uses."""
        return "sequence" if self.loss_type == "gspo" else self.importance_sampling_level

    @property
    def num_rollout_workers(self) -> int:
        """Beside each training worker."""
        return min(1, self.max_staleness) if self.rollout_workers is None else self.rollout_workers

    @property
    def correction(self) -> Literal["none", "truncate", "mask", "decoupled"]:
        """The sampler correction that the loss really uses."""
        return self.sampler_correction or ("truncate" if self.max_staleness else "none")

    @property
    def clip_range_high(self) -> float:
        """Upper clip range of the clip family."""
        return self.epsilon if self.epsilon_high is None else self.epsilon_high

    @property
    def cispo_cap(self) -> float:
        """Upper bound of cispo's ratio; 5 as in ScaleRL (arXiv:2510.13786)."""
        return 5.0 if self.epsilon_high is None else self.epsilon_high

    @model_validator(mode="after")
    def _algorithm_is_honoured(self) -> Self:
        """Refuses a value that the chosen algorithm would not read, rather than ignoring it."""
        unread = {
            "cispo": ("epsilon", "delta", "sapo_temperature_pos", "sapo_temperature_neg"),
            "sapo": ("epsilon", "epsilon_high", "delta"),
        }.get(self.loss_type, ("sapo_temperature_pos", "sapo_temperature_neg"))
        for name in unread:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name}: loss_type {self.loss_type} does not read it; remove it")
        if self.loss_type in ("cispo", "sapo") and self.importance_sampling_level == "sequence":
            raise ValueError(
                f"importance_sampling_level: loss_type {self.loss_type} is defined per token; write 'token'"
            )
        if self.loss_type == "cispo" and self.cispo_cap <= 1:
            raise ValueError(
                f"epsilon_high: {self.epsilon_high} is a clip range, but cispo caps the ratio itself; write e.g. 5.0"
            )
        if self.delta is not None and self.delta <= 1 + self.clip_range_high:
            raise ValueError(
                f"delta: {self.delta} is not above {1 + self.clip_range_high} (1 + upper clip range); write e.g. 3.0"
            )
        scales_of_estimator = {"grpo": ("group", "batch", "none"), "rloo": ("group", "none")}
        if self.scale_rewards not in scales_of_estimator.get(self.advantage_estimator, ("group",)):
            raise ValueError(
                f"scale_rewards: {self.advantage_estimator} has a scale of its own and does not read "
                f"{self.scale_rewards!r}; remove it"
            )
        if self.advantage_estimator == "gdpo" and self.overlong_buffer:
            raise ValueError(
                "overlong_buffer: gdpo normalises each reward of the rubric apart, a penalty on their sum has no "
                "effect; add a length reward to the rubric"
            )
        return self

    @model_validator(mode="after")
    def _engine_is_honoured(self) -> Self:
        fields = type(self).model_fields
        if self.engine == "torch":
            if self.vllm != VllmConfig():
                raise ValueError("vllm: engine torch does not read it; remove it, or write engine: vllm")
            return self
        if self.reuse_activations_gb not in (0, fields["reuse_activations_gb"].default):
            raise ValueError("reuse_activations_gb: vLLM leaves no activations; write 0 or remove it")
        if self.deepspeed is not None:
            raise ValueError("deepspeed: its weights do not reach vLLM yet; remove it, or write engine: torch")
        if self.temperature != 1 and (self.top_p < 1 or self.top_k):
            raise ValueError(
                f"temperature: {self.temperature}, but with top_p or top_k vLLM tells log-probabilities only for 1; "
                "write 1, turn top_p and top_k off, or write engine: torch"
            )
        if self.vllm.context_window is not None and self.vllm.context_window < self.max_episode_length:
            raise ValueError(
                f"vllm.context_window: {self.vllm.context_window} is shorter than max_episode_length "
                f"({self.max_episode_length}); raise it or remove it"
            )
        return self

    @model_validator(mode="after")
    def _rollouts_are_somebodys(self) -> Self:
        if self.max_staleness and self.rollout_workers == 0:
            raise ValueError(
                f"rollout_workers: 0 leaves nobody to play ahead with max_staleness {self.max_staleness}; write 1 or "
                "more, or max_staleness: 0"
            )
        if self.num_rollout_workers and self.engine != "torch":
            raise ValueError(
                f"engine: rollout workers generate with torch, not with {self.engine}; write engine: torch, or "
                "max_staleness: 0 and no rollout_workers"
            )
        if self.num_rollout_workers:
            default = type(self).model_fields["reuse_activations_gb"].default
            if self.reuse_activations_gb not in (0, default):
                raise ValueError(
                    f"reuse_activations_gb: {self.reuse_activations_gb} is for rollouts of the learner's own engine; "
                    "remove it, or write max_staleness: 0 and no rollout_workers"
                )
            return self
        for name in ("rollout_resources", "rollout_restarts", "rollout_timeout_s", "rollout_start_timeout_s"):
            if getattr(self, name) != type(self).model_fields[name].get_default(call_default_factory=True):
                raise ValueError(f"{name}: there are no rollout workers; set max_staleness or rollout_workers")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.prompts_per_step % self.num_workers:
            raise ValueError(
                f"prompts_per_step: {self.prompts_per_step} is not a multiple of num_workers ({self.num_workers})"
            )
        if self.min_workers and (self.min_workers > self.num_workers or self.prompts_per_step % self.min_workers):
            raise ValueError(
                f"min_workers: {self.min_workers} must be at most num_workers ({self.num_workers}) and divide "
                f"prompts_per_step ({self.prompts_per_step})"
            )
        if self.early_stopping and not self.eval_steps:
            raise ValueError("early_stopping: needs eval_steps, the number of steps between held-out evaluations")
        if self.load_best_model_at_end and not self.save_best_limit:
            raise ValueError(
                "save_best_limit: 0 would delete the checkpoint that load_best_model_at_end publishes; write 1, or "
                "load_best_model_at_end: false"
            )
        if self.divergence.max_kl is not None and not self.beta:
            raise ValueError("divergence.max_kl: the KL is measured only with beta above 0; set beta or remove it")
        if self.overlong_buffer > self.max_completion_length:
            raise ValueError(
                f"overlong_buffer: {self.overlong_buffer} exceeds max_completion_length ({self.max_completion_length})"
            )
        if self.max_prompt_length >= self.max_episode_length:
            raise ValueError(
                f"max_episode_length: {self.max_episode_length} leaves no room after max_prompt_length "
                f"({self.max_prompt_length}); raise it"
            )
        return self
