"""The platform from Python, over HTTP.

    platform = Client()
    job = platform.train({"model": "tiny", "max_steps": 20})
    platform.wait(job["job_id"], on_progress=lambda view: print(view["progress"]))
    print(platform.chat("Hello", model=job["job_id"])["response"])

Every method raises the PlatformError that the server named (NotFound, Conflict, InvalidRequest ...), and Unavailable
when no server answers.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import httpx

from chatgrpo import errors
from chatgrpo.errors import InvalidRequest, PlatformError, Unavailable
from chatgrpo.jobs.job import JobState

DEFAULT_URL = "http://127.0.0.1:8002"

# A reply of a model on a CPU may take minutes; its bytes or keep-alive comments do not.
_TIMEOUT = httpx.Timeout(30.0, read=600.0)
_MAX_RECONNECTS = 5

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One server-sent event."""

    name: str
    data: Json
    id: str | None


class Client:
    """`key` is an API key; absent: that of the environment variable CHATGRPO_API_KEY, if there is one. `http` replaces
    the connection, for tests and for own headers; its base URL is then the platform's."""

    def __init__(self, url: str = DEFAULT_URL, *, key: str | None = None, http: httpx.Client | None = None) -> None:
        key = key or os.environ.get("CHATGRPO_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = http or httpx.Client(base_url=url, timeout=_TIMEOUT, headers=headers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def train(self, config: Mapping[str, Any]) -> Json:
        """Queues a job: a TrainConfig as a mapping, or the short form."""
        return self._ask("POST", "/api/v2/train", json=dict(config))

    def jobs(self, *, state: str | None = None, limit: int = 50) -> list[Json]:
        query = {"limit": limit} | ({"state": state} if state else {})
        return list(self._ask("GET", "/api/v2/jobs", params=query)["jobs"])

    def job(self, job_id: str) -> Json:
        return self._ask("GET", f"/api/v2/jobs/{job_id}")

    def cancel(self, job_id: str) -> Json:
        return self._ask("DELETE", f"/api/v2/jobs/{job_id}")

    def delete(self, job_id: str) -> Json:
        """Removes an ended job and its files."""
        return self._ask("DELETE", f"/api/v2/jobs/{job_id}", params={"purge": True})

    def pause(self, job_id: str) -> Json:
        return self._ask("POST", f"/api/v2/jobs/{job_id}/pause")

    def resume(self, job_id: str) -> Json:
        return self._ask("POST", f"/api/v2/jobs/{job_id}/resume")

    def retry(self, job_id: str) -> Json:
        return self._ask("POST", f"/api/v2/jobs/{job_id}/retry")

    def tune(self, sweep: Mapping[str, Any]) -> Json:
        """Queues a sweep: a SweepConfig as a mapping. Its id is also that of a job: `wait` and `logs` take it."""
        return self._ask("POST", "/api/v2/sweeps", json=dict(sweep))

    def sweeps(self, *, limit: int = 50) -> list[Json]:
        return list(self._ask("GET", "/api/v2/sweeps", params={"limit": limit})["sweeps"])

    def sweep(self, sweep_id: str) -> Json:
        """Its state, its trials with the best first, and the best configuration so far."""
        return self._ask("GET", f"/api/v2/sweeps/{sweep_id}")

    def wait(
        self,
        job_id: str,
        *,
        on_progress: Callable[[Json], None] | None = None,
        poll_s: float = 1.0,
        patience_s: float = 60.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> Json:
        """The job once it has ended, however it ended. `on_progress` sees every view. A platform that does not answer
        is waited for up to `patience_s`."""
        silent_s = 0.0
        while True:
            try:
                view = self.job(job_id)
            except Unavailable:
                silent_s += poll_s
                if silent_s > patience_s:
                    raise
            else:
                silent_s = 0.0
                if on_progress is not None:
                    on_progress(view)
                if JobState(view["status"]).is_terminal:
                    return view
            sleep(poll_s)

    def logs(self, job_id: str, *, tail: int = 200) -> str:
        with _translated(self._http):
            answer = self._http.get(f"/api/v2/jobs/{job_id}/logs", params={"tail": tail})
        _check(answer)
        return answer.text

    def follow_logs(self, job_id: str) -> Iterator[str]:
        """The log from its beginning until the job has ended; a broken connection is taken up where it broke."""
        position, num_broken = "", 0
        while True:
            headers = {"Last-Event-ID": position} if position else {}
            try:
                for event in self._events(
                    "GET", f"/api/v2/jobs/{job_id}/logs", params={"follow": True}, headers=headers
                ):
                    position, num_broken = event.id or position, 0
                    if event.name == "end":
                        return
                    yield event.data["text"]
            except Unavailable:
                num_broken += 1
                if num_broken > _MAX_RECONNECTS:
                    raise

    def events(self, job_id: str) -> list[Json]:
        return list(self._ask("GET", f"/api/v2/jobs/{job_id}/events")["events"])

    def checkpoints(self, job_id: str) -> list[Json]:
        return list(self._ask("GET", f"/api/v2/jobs/{job_id}/checkpoints")["checkpoints"])

    def trajectories(self, job_id: str, *, offset: int = 0, limit: int = 50) -> list[Json]:
        query = {"offset": offset, "limit": limit}
        return list(self._ask("GET", f"/api/v2/jobs/{job_id}/trajectories", params=query)["episodes"])

    def chat(self, message: str, **options: Any) -> Json:
        """The whole reply. `options` are the fields of a chat request: model, conversation_id, temperature ..."""
        return self._ask("POST", "/api/v2/chat", json={"message": message, **options})

    def stream(self, message: str, **options: Any) -> Iterator[str | Json]:
        """Pieces of text, then the whole answer as `chat` returns it."""
        body = {"message": message, **options, "stream": True}
        for event in self._events("POST", "/api/v2/chat", json=body):
            if event.name == "delta":
                yield event.data["text"]
            elif event.name == "done":
                yield event.data

    def models(self) -> list[Json]:
        return list(self._ask("GET", "/api/v2/models")["models"])

    def health(self) -> Json:
        return self._ask("GET", "/api/v2/health")

    def metrics(self) -> Json:
        return self._ask("GET", "/api/v2/metrics")

    def alerts(self) -> list[Json]:
        """What fires, the gravest first, then what may soon."""
        return list(self._ask("GET", "/api/v2/alerts")["alerts"])

    def status(self) -> Json:
        return self._ask("GET", "/api/v2/system/status")

    def _ask(self, method: str, path: str, **options: Any) -> Json:
        with _translated(self._http):
            answer = self._http.request(method, path, **options)
        _check(answer)
        found = answer.json()
        assert isinstance(found, dict)
        return found

    def _events(self, method: str, path: str, **options: Any) -> Iterator[ServerEvent]:
        with _translated(self._http), self._http.stream(method, path, **options) as answer:
            if answer.is_error:
                answer.read()
            _check(answer)
            for event in parse_events(answer.iter_lines()):
                if event.name == "error":
                    raise error_of(event.data, 500)
                yield event


def parse_events(lines: Iterator[str]) -> Iterator[ServerEvent]:
    """Events of a text/event-stream whose data is JSON; comments are left out."""
    fields: dict[str, str] = {}
    for line in lines:
        if not line:
            if "data" in fields:
                yield ServerEvent(fields.get("event", "message"), json.loads(fields["data"]), fields.get("id"))
            fields = {}
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data" and "data" in fields:
            value = f"{fields['data']}\n{value}"
        if name:
            fields[name] = value


def error_of(body: Any, status: int) -> PlatformError:
    """The error that an error body describes, as the class that has its code."""
    info = body.get("error") if isinstance(body, dict) else None
    if not isinstance(info, dict):
        return PlatformError(f"the server answered with status {status} and no reason")
    message = str(info.get("message", ""))
    if info.get("code") == InvalidRequest.code:
        # The message names every field already.
        field = str(info.get("field") or "")
        return InvalidRequest(message.removeprefix(f"{field}: "), field)
    kinds = {
        kind.code: kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, PlatformError)
    }
    kind = kinds.get(str(info.get("code")), PlatformError)
    if kind is errors.Conflict:
        return errors.Conflict(message, info.get("current_version"))
    return kind(message)


def _check(answer: httpx.Response) -> None:
    if not answer.is_error:
        return
    try:
        body = answer.json()
    except ValueError:
        body = None
    raise error_of(body, answer.status_code)


@contextmanager
def _translated(http: httpx.Client) -> Iterator[None]:
    try:
        yield
    except httpx.ConnectError as error:
        raise Unavailable(f"no platform answers at {http.base_url}; start one with `chatgrpo serve`") from error
    except httpx.TransportError as error:
        raise Unavailable(f"the connection to {http.base_url} broke: {error or type(error).__name__}") from error
