"""What can be asked of a rubric, as data."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from chatgrpo.config import Strict


class _Weighted(Strict):
    weight: float = Field(1.0, description="Factor of this reward in the weighted sum.")


class VerifierReward(_Weighted):
    """The data set's own verifier (reasoning-gym's score_answer) on the extracted answer."""

    type: Literal["verifier"] = "verifier"
    extract: Literal["all", "last_number", "last_line", "answer_tag"] = Field(
        "all", description="Which part of the reply is the answer; answer_tag reads <answer>...</answer>."
    )


class ExactReward(_Weighted):
    """1 when the extracted answer equals the task's, else 0."""

    type: Literal["exact"] = "exact"
    extract: Literal["all", "last_number", "last_line", "answer_tag"] = Field(
        "all", description="Which part of the reply is the answer; answer_tag reads <answer>...</answer>."
    )
    ignore_case: bool = Field(True, description="Compare without regard to case.")


class NumericReward(_Weighted):
    """1 when the last number of the reply is within `tolerance` of the task's answer, else 0."""

    type: Literal["numeric"] = "numeric"
    tolerance: float = Field(1e-6, ge=0, description="Largest absolute difference that still counts as equal.")


class RegexReward(_Weighted):
    """1 when the reply matches `pattern` (searched, not anchored), else 0."""

    type: Literal["regex"] = "regex"
    pattern: str = Field(description="Python regular expression.")


class FormatReward(_Weighted):
    """Share of the required tags that appear exactly once and in order, as <tag>...</tag>."""

    type: Literal["format"] = "format"
    tags: list[str] = Field(min_length=1, description="Tag names, in the order wanted, for example [think, answer].")


class LengthReward(_Weighted):
    """1 up to `target_tokens` sampled tokens, falling linearly to 0 at `max_tokens`."""

    type: Literal["length"] = "length"
    target_tokens: int = Field(ge=0, description="No penalty up to this many sampled tokens.")
    max_tokens: int = Field(ge=1, description="0 from this many sampled tokens on.")


class EnvironmentReward(_Weighted):
    """What the environment itself paid, summed over its steps."""

    type: Literal["environment"] = "environment"


class PluginReward(_Weighted):
    """A Python callable registered with @reward(name) by a plug-in or an entry point of group chatgrpo.rewards."""

    type: Literal["plugin"] = "plugin"
    name: str = Field(description="Registered name.")
    params: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments given to the callable.")


class JudgeReward(_Weighted):
    """A language model behind an OpenAI-compatible endpoint grades the reply from 0 to 10; the reward is grade / 10."""

    type: Literal["judge"] = "judge"
    base_url: str = Field(description="Endpoint, for example http://127.0.0.1:8002/v1.")
    model: str = Field(description="Model name that the endpoint knows.")
    api_key_env: str | None = Field(None, description="Environment variable that holds the key; never the key itself.")
    criteria: str = Field("Is the reply correct and helpful?", description="What the judge is asked to grade.")
    timeout_s: float = Field(30.0, gt=0, description="Per request.")


RewardConfig = Annotated[
    VerifierReward
    | ExactReward
    | NumericReward
    | RegexReward
    | FormatReward
    | LengthReward
    | EnvironmentReward
    | PluginReward
    | JudgeReward,
    Field(discriminator="type"),
]
