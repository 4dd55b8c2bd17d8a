"""Every metric of the platform, declared once: name, unit, labels, and how the values of several processes merge.

Names follow Prometheus: they end with their unit, counters are shown with `_total`. No label ever holds a user, an
address or a raw path; `job_id` is of active jobs only, whose number is bounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

PREFIX = "chatgrpo_"


class Kind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Merge(StrEnum):
    """One figure from those of several processes. `newest`: all of them report the same thing."""

    SUM = "sum"
    MAX = "max"
    NEWEST = "newest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """`name` without `_total`. `buckets` are the upper bounds of a histogram."""

    name: str
    help: str
    kind: Kind = Kind.GAUGE
    unit: str = ""
    labels: tuple[str, ...] = ()
    merge: Merge = Merge.NEWEST
    buckets: tuple[float, ...] = ()

    @property
    def sample_name(self) -> str:
        """As it stands in the exposition."""
        return f"{self.name}_total" if self.kind is Kind.COUNTER else self.name


def _counter(name: str, help: str, *labels: str, unit: str = "") -> Metric:
    return Metric(name=PREFIX + name, help=help, kind=Kind.COUNTER, unit=unit, labels=labels, merge=Merge.SUM)


def _gauge(name: str, help: str, *labels: str, unit: str = "", merge: Merge = Merge.NEWEST) -> Metric:
    return Metric(name=PREFIX + name, help=help, unit=unit, labels=labels, merge=merge)


def _machine_counter(name: str, help: str) -> Metric:
    """Every process of a machine reports the same count."""
    return Metric(name=PREFIX + name, help=help, kind=Kind.COUNTER, unit="bytes", merge=Merge.MAX)


# From a cached GET (a millisecond) to a long streamed reply on a CPU (minutes).
_REQUEST_BUCKETS_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0)

# API
HTTP_REQUESTS = _counter("http_requests", "HTTP requests answered.", "method", "route", "status")
HTTP_SECONDS = Metric(
    name=f"{PREFIX}http_request_seconds",
    help="Time from the request to the end of its answer; streams count until their last byte.",
    kind=Kind.HISTOGRAM,
    unit="seconds",
    labels=("route",),
    merge=Merge.SUM,
    buckets=_REQUEST_BUCKETS_S,
)
HTTP_QUEUE_SECONDS = Metric(
    name=f"{PREFIX}http_queue_seconds",
    help="Time that a request waited before its handler: authentication, limits, cache, body, its turn.",
    kind=Kind.HISTOGRAM,
    unit="seconds",
    labels=("route",),
    merge=Merge.SUM,
    buckets=(0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0),
)
HTTP_CONNECTIONS = _gauge("http_connections", "Requests and sockets being served now.", merge=Merge.SUM)
LABELS_DROPPED = _counter("label_sets_dropped", "Label sets beyond a metric's limit, counted as `other`.", "metric")
REPORTS_DROPPED = _counter("reports_dropped", "Metric reports that the hub did not take in time.")
SPANS_DROPPED = _counter("spans_dropped", "Spans that the trace collector did not take.")

# Gateway
CACHE_LOOKUPS = _counter("cache_lookups", "Looks into a cache: response, conversation, model.", "tier", "result")
LIMIT_REFUSALS = _counter("limit_refusals", "Requests that a limit refused; a shadow limit only would have.", "limit")
OFFENCES = _counter("offences", "Requests that look like an attack.", "kind")
BLOCKS = _counter("blocks", "Addresses blocked for what they did.")
TURNED_AWAY = _counter("turned_away", "Requests of blocked addresses.")
BREAKER_OPENINGS = _counter("breaker_openings", "Circuits opened for what this process saw fail.")
BREAKER_REFUSALS = _counter("breaker_refusals", "Calls not made because a circuit was open.")
GIVEN_UP = _counter("given_up", "Given up under load or failure: training_request, quality, reply.", "kind")
BREAKER_STATE = _gauge("breaker_state", "0 closed, 1 half open, 2 open.", "upstream", merge=Merge.MAX)

# Live updates
LIVE_READERS = _gauge("live_readers", "Sockets open for live updates.", merge=Merge.SUM)
LIVE_EVENTS = _counter("live_events", "Events told to live readers, by kind of topic.", "topic")
LIVE_READERS_DROPPED = _counter("live_readers_dropped", "Sockets closed because their client did not read.")

# Platform
COMPONENT_UP = _gauge("component_up", "1 when the component answers.", "component")
JOBS = _gauge("jobs", "Jobs by state.", "state")
CHAT_REQUESTS = _gauge("chat_requests", "Replies being written.", merge=Merge.SUM)
MODEL_REPLICAS = _gauge("model_replicas", "Chat replicas that run.", merge=Merge.SUM)
CHAT_TOKENS = _counter("chat_tokens", "Tokens sampled for chat.")

# What it is for
CONVERSATIONS_STARTED = _counter("conversations_started", "Conversations begun.")
TURNS = _counter("conversation_turns", "Turns added to conversations.")
FEEDBACK = Metric(
    name=f"{PREFIX}feedback_score",
    help="What people said about replies, from 0 (bad) to 1 (good).",
    kind=Kind.HISTOGRAM,
    merge=Merge.SUM,
    buckets=(0.0, 0.25, 0.5, 0.75, 1.0),
)
MODEL_QUALITY = _gauge("model_eval_reward", "Mean held-out reward of a published model.", "model")

# Machine
_MAX = Merge.MAX
CPU_PERCENT = _gauge("cpu_percent", "Processor use of the machine, 0 to 100.", unit="percent", merge=_MAX)
LOAD_AVERAGE = _gauge("load_average_1m", "Processes that want to run, mean over a minute.", merge=_MAX)
MEMORY_PERCENT = _gauge("memory_percent", "Memory in use, 0 to 100.", unit="percent", merge=_MAX)
MEMORY_USED = _gauge("memory_used_bytes", "Memory in use.", unit="bytes", merge=_MAX)
DISK_PERCENT = _gauge("disk_percent", "Disk in use where runs are kept, 0 to 100.", unit="percent", merge=_MAX)
DISK_FREE = _gauge("disk_free_bytes", "Free disk where runs are kept.", unit="bytes", merge=_MAX)
PROCESS_MEMORY = _gauge("process_memory_bytes", "Memory of the API process.", unit="bytes", merge=Merge.SUM)
NETWORK_SENT = _machine_counter("network_sent_bytes", "Bytes sent by the machine.")
NETWORK_RECEIVED = _machine_counter("network_received_bytes", "Bytes received by the machine.")
GPU_PERCENT = _gauge("gpu_percent", "GPU use, 0 to 100.", "gpu", unit="percent", merge=_MAX)
GPU_MEMORY_USED = _gauge("gpu_memory_used_bytes", "GPU memory in use.", "gpu", unit="bytes", merge=_MAX)

MACHINE: dict[str, Metric] = {
    "cpu_percent": CPU_PERCENT,
    "load_average_1m": LOAD_AVERAGE,
    "memory_percent": MEMORY_PERCENT,
    "memory_used_bytes": MEMORY_USED,
    "disk_percent": DISK_PERCENT,
    "disk_free_bytes": DISK_FREE,
    "process_memory_bytes": PROCESS_MEMORY,
    "network_sent_bytes": NETWORK_SENT,
    "network_received_bytes": NETWORK_RECEIVED,
}
"""By the name that `read_system` gives a figure."""

TRAINING_STEP = _gauge("training_step", "Steps that the run has finished.", "job_id")
TRAINING_TOTAL_STEPS = _gauge("training_total_steps", "Steps that the run will take.", "job_id")

TRAINING: dict[str, Metric] = {
    reported: _gauge(f"training_{name}", help, "job_id", unit=unit)
    for reported, name, help, unit in (
        ("reward", "reward", "Mean reward of the newest step.", ""),
        ("eval_reward", "eval_reward", "Mean reward on held-out tasks.", ""),
        ("reward_std", "reward_std", "Mean spread of rewards within a group.", ""),
        ("advantage_std", "advantage_std", "Spread of the advantages.", ""),
        ("zero_variance_groups", "zero_variance_groups_ratio", "Share of groups of equal rewards.", "ratio"),
        ("kl", "kl_nats", "KL to the reference a token; measured when beta is above 0.", "nats"),
        ("entropy", "entropy_nats", "Entropy a token.", "nats"),
        ("loss", "loss", "Loss of the newest update.", ""),
        ("clip_fraction_low", "clip_fraction_low_ratio", "Share of tokens clipped below.", "ratio"),
        ("clip_fraction_high", "clip_fraction_high_ratio", "Share of tokens clipped above.", "ratio"),
        ("sampler_delta_mean", "sampler_delta_nats", "Mean |log-prob of learner - of sampler| a token.", "nats"),
        ("grad_norm", "grad_norm", "Gradient norm before clipping.", ""),
        ("learning_rate", "learning_rate", "Learning rate of the newest update.", ""),
        ("completion_length", "completion_tokens", "Mean sampled tokens an episode.", "tokens"),
        ("truncated", "truncated_ratio", "Share of episodes cut by a length limit.", "ratio"),
        ("rows_nonfinite", "rows_nonfinite", "Rows left out of the newest update: loss not finite.", ""),
        ("rollout/tokens_per_s", "tokens_per_second", "Tokens sampled a second while generating.", ""),
        ("rollout/environment_failures", "environment_failures", "Environment failures of the newest step.", ""),
        ("update_tokens_per_s", "update_tokens_per_second", "Tokens learned from a second of the update.", ""),
        ("mfu", "mfu_ratio", "Share of the device's peak that the update's FLOPs came to.", "ratio"),
        ("memory_bytes", "memory_bytes", "Most GPU memory held; without a GPU the process's memory.", "bytes"),
        ("weight_lag", "weight_lag_steps", "How many updates old the weights were that spoke.", ""),
        ("staleness_mean", "staleness_updates", "Updates between sampling and training, mean of tokens.", ""),
        ("rollout/queue_wait_s", "rollout_queue_wait_seconds", "Played groups lay ready, mean of a step.", "seconds"),
        ("rollout/stale_groups", "rollout_stale_groups", "Groups of the newest step that were too old.", ""),
        ("rollout/worker_restarts", "rollout_worker_restarts", "Rollout workers started again, newest step.", ""),
        ("rollout/rollout_workers", "rollout_workers", "Rollout workers that are up.", ""),
        ("time/eval_s", "eval_seconds", "The newest held-out evaluation.", "seconds"),
        ("time/rollout_s", "rollout_seconds", "Rollouts of the newest step.", "seconds"),
        ("time/update_s", "update_seconds", "Update of the newest step.", "seconds"),
        ("time/step_s", "step_seconds", "The whole newest step.", "seconds"),
    )
}
"""By the name under which a run reports the figure."""

CATALOG: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        *(value for value in list(globals().values()) if isinstance(value, Metric)),
        *TRAINING.values(),
    )
}
"""All of the above, by name."""
