"""Alert rules as data: `configs/alerts.yaml`. Metrics are named as in the exposition, so the rules fit Prometheus."""

from __future__ import annotations

from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from chatgrpo.config import Strict, load_yaml
from chatgrpo.errors import InvalidRequest

Op = Literal[">", ">=", "<", "<=", "=="]
Where = Annotated[dict[str, str], Field(default_factory=dict, description="Labels that a series must have.")]

SHIPPED = Path(__file__).parent / "alerts.yaml"


class Threshold(Strict):
    """A figure, or its mean, least or greatest over a time, compared with a value; per series."""

    type: Literal["threshold"] = "threshold"
    metric: str
    where: Where
    take: Literal["last", "mean", "min", "max"] = "last"
    over_s: float = Field(0.0, ge=0, description="For mean, min and max: how far back.")
    op: Op = ">"
    value: float

    @model_validator(mode="after")
    def _has_a_window(self) -> Self:
        if (self.take == "last") != (self.over_s == 0):
            raise ValueError(f"over_s: take {self.take!r} {'has no' if self.take == 'last' else 'needs a'} window")
        return self


class Rate(Strict):
    """How fast counters grow, a second, summed over the series that agree in the labels `by`."""

    type: Literal["rate"] = "rate"
    metric: str
    where: Where
    by: list[str] = Field(default_factory=list)
    over_s: float = Field(gt=0)
    op: Op = ">"
    value: float


class Change(Strict):
    """Last minus first over a time, per series that is as old as that; `relative`: as a share of the first."""

    type: Literal["change"] = "change"
    metric: str
    where: Where
    over_s: float = Field(gt=0)
    relative: bool = False
    op: Op = ">"
    value: float


class Absence(Strict):
    """Nobody has reported the figure for a time."""

    type: Literal["absence"] = "absence"
    metric: str
    where: Where
    over_s: float = Field(gt=0)


class Counted(Strict):
    metric: str
    where: Where


class BurnRate(Strict):
    """The share of bad events uses up the error budget `factor` times too fast, over a long time and still now."""

    type: Literal["burn_rate"] = "burn_rate"
    bad: Counted
    total: Counted
    objective: float = Field(gt=0, lt=1, description="Share of good events that is promised, for example 0.99.")
    long_s: float = Field(gt=0)
    short_s: float = Field(gt=0)
    factor: float = Field(gt=0)


Simple = Annotated[Threshold | Rate | Change | Absence | BurnRate, Field(discriminator="type")]


class All(Strict):
    """All of several conditions, for the same values of the labels `same`."""

    type: Literal["all"] = "all"
    same: list[str]
    conditions: list[Simple] = Field(min_length=2)


Condition = Annotated[Threshold | Rate | Change | Absence | BurnRate | All, Field(discriminator="type")]


class Rule(Strict):
    """What must hold for how long, and what to say then."""

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")
    severity: Literal["info", "warning", "critical"] = "warning"
    when: Condition
    for_s: float = Field(0.0, ge=0, description="It must hold so long without a gap before the alert fires.")
    summary: str = Field(description="For people; {value} and the labels of the series can be used.")
    advice: str = Field("", description="What to do about it.")

    @property
    def fields(self) -> set[str]:
        """Names used in the summary."""
        return {name for _, name, _, _ in Formatter().parse(self.summary) if name}

    @model_validator(mode="after")
    def _summary_is_plain(self) -> Self:
        strange = sorted(name for name in self.fields if not name.isidentifier())
        if strange:
            raise ValueError(f"summary: {{{strange[0]}}} is not the name of a label")
        return self


class LogHandler(Strict):
    """Writes to the platform's log."""

    type: Literal["log"] = "log"


class WebhookHandler(Strict):
    """POSTs JSON, signed with HMAC-SHA256 in the header X-Chatgrpo-Signature: `t=<seconds>,v1=<hex of "t.body">`."""

    type: Literal["webhook"] = "webhook"
    url: str = Field(pattern=r"^https?://[^\s@]+$")
    secret_env: str | None = Field(None, description="Environment variable that holds the signing secret.")
    allow_private: bool = Field(False, description="May go to addresses of this machine or a private network.")
    timeout_s: float = Field(5.0, gt=0)
    attempts: int = Field(3, ge=1)


class AlertmanagerHandler(Strict):
    """POSTs to the API of a Prometheus Alertmanager, which is usually in the private network."""

    type: Literal["alertmanager"] = "alertmanager"
    url: str = Field(pattern=r"^https?://[^\s@]+$", description="Without /api/v2/alerts.")
    timeout_s: float = Field(5.0, gt=0)
    attempts: int = Field(3, ge=1)


class EmailHandler(Strict):
    """Sends mail over SMTP with STARTTLS."""

    type: Literal["email"] = "email"
    host: str
    port: int = 587
    sender: str
    to: list[str] = Field(min_length=1)
    username: str | None = None
    password_env: str | None = Field(None, description="Environment variable that holds the password.")
    starttls: bool = True
    timeout_s: float = Field(10.0, gt=0)

    @model_validator(mode="after")
    def _a_name_has_a_password(self) -> Self:
        if (self.username is None) != (self.password_env is None):
            raise ValueError(f"username {self.username!r} and password_env {self.password_env!r}: give both or neither")
        return self


class PluginHandler(Strict):
    """A handler of your own: an entry point of the group `chatgrpo.alert_handlers` in an installed package."""

    type: Literal["plugin"] = "plugin"
    name: str = Field(min_length=1, description="Name of the entry point.")
    options: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of what it names.")
    timeout_s: float = Field(10.0, gt=0)


Handler = Annotated[
    LogHandler | WebhookHandler | AlertmanagerHandler | EmailHandler | PluginHandler,
    Field(discriminator="type"),
]


def _log_alone() -> list[Handler]:
    return [LogHandler()]


class AlertsConfig(Strict):
    """`configs/alerts.yaml`."""

    tick_s: float = Field(5.0, gt=0, description="Seconds between two looks at all rules.")
    rules: list[Rule] = Field(default_factory=list)
    handlers: list[Handler] = Field(default_factory=_log_alone)

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [rule.name for rule in self.rules]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"rules: {twice[0]} is there twice; give each rule a name of its own")
        return self


def load_alerts(path: Path | None = None) -> AlertsConfig:
    """The shipped rules when no file is named. Raises InvalidRequest naming file and field."""
    try:
        return AlertsConfig(**load_yaml(path or SHIPPED))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidRequest(f"{path or SHIPPED}: {first['msg']}", where) from error
