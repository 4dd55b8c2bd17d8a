"""The gateway against the LiteLLM proxy, against a bare handler on uvicorn and against a bare handler on Ray Serve.

All four take the same chat request and answer with the same JSON; the model behind them is a mock that answers at once.
Ours asks for a key, checks the role, counts two limits (in a file that replicas share), writes the audit trail and
counts metrics; LiteLLM asks for its master key. Everything runs on this machine, one server under load at a time, in
turns.
LiteLLM is installed into a throw-away environment. Ray Serve runs as in production: HAProxy in front, throughput mode.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.load import Measured, Plan, measure
from benchmarks.report import figure, write_report
from chatgrpo.embedded import free_port

PATH = "/v1/chat/completions"
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "What is two plus two?"}], "max_tokens": 16}
CONNECTIONS = (1, 32, 256)
ROUNDS = 3
SECONDS = 2.0
SOAK_REQUESTS = 100_000
LITELLM_KEY = "sk-bench-0123456789"
QUIET = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION"}
UV = Path(__file__).parent.parent / ".uv" / "bin" / "uv"


@contextmanager
def server(command: list[str], port: int, *, env: dict[str, str] | None = None, log: Path) -> Iterator[psutil.Process]:
    """The command as a process tree that is gone when the block ends."""
    with log.open("w") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
    tree = psutil.Process(child.pid)
    try:
        wait_for(child, port, log)
        yield tree
    finally:
        family = tree.children(recursive=True) if child.poll() is None else []
        assert child.stdin is not None
        child.stdin.close()
        if "serve" not in command:
            child.terminate()
        try:
            child.wait(40)
        except subprocess.TimeoutExpired:
            child.kill()
        _, alive = psutil.wait_procs(family, timeout=10)
        for process in alive:
            process.kill()


def wait_for(child: subprocess.Popen[bytes], port: int, log: Path) -> None:
    is_serve = "serve" in child.args  # type: ignore[operator]
    for _ in range(1200):
        if child.poll() is not None:
            break
        if is_serve and "ready cgk_" in log.read_text():
            return
        if not is_serve and answers(port):
            return
        time.sleep(0.1)
    raise SystemExit(f"the server does not answer:\n{log.read_text()[-2000:]}")


def answers(port: int) -> bool:
    try:
        httpx.get(f"http://127.0.0.1:{port}/", timeout=2)
    except httpx.TransportError:
        return False
    return True


def rss_mb(processes: list[psutil.Process], *, named: str = "") -> float:
    """Resident memory, of the processes whose command line has `named` in it."""
    total = 0
    for process in processes:
        try:
            if named in " ".join(process.cmdline()):
                total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / 2**20


def at_all_sizes(port: int, path: str, headers: dict[str, str], seconds: float) -> dict[int, Measured]:
    return {
        connections: measure(
            Plan(port=port, path=path, body=BODY, headers=headers, connections=connections, seconds=seconds)
        )
        for connections in CONNECTIONS
    }


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def install_litellm(folder: Path) -> tuple[Path, str]:
    """The folder of its programs in an environment of its own, and its version."""
    env = folder / "litellm"
    python = str(env / "bin" / "python")
    subprocess.run([str(UV), "venv", "--quiet", "--python", sys.executable, str(env)], check=True)
    subprocess.run([str(UV), "pip", "install", "--quiet", "--python", python, "litellm[proxy]"], check=True)
    show = [str(UV), "pip", "show", "--python", python, "litellm"]
    shown = subprocess.run(show, check=True, stdout=subprocess.PIPE)
    return env / "bin", shown.stdout.decode().split("Version: ")[1].split()[0]


def litellm_command(programs: Path, port: int, folder: Path) -> list[str]:
    config = folder / "litellm.yaml"
    config.write_text(
        "model_list:\n- model_name: tiny\n  litellm_params: {model: openai/tiny, api_key: none, mock_response: "
        f"Two and two make four.}}\ngeneral_settings: {{master_key: {LITELLM_KEY}}}\n"
    )
    command = [str(programs / "litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    return [*command, "--telemetry", "False"]


def median(rounds: list[dict[int, Measured]]) -> dict[int, Measured]:
    """The median round by requests per second, of each size."""
    return {size: sorted((one[size] for one in rounds), key=lambda m: m.rps)[len(rounds) // 2] for size in CONNECTIONS}


def side_by_side(folder: Path) -> dict[str, Any]:
    """All four run; one after the other is under load, round after round, so that what else the machine does hits all
    alike. Then the soak of ours."""
    programs, version = install_litellm(folder)
    ports = {"serve": free_port(), "uvicorn": free_port(), "litellm": free_port()}
    ours = [sys.executable, "-m", "benchmarks.gateway_servers"]
    logs = {name: folder / f"{name}.log" for name in ports}
    with (
        # First, because Ray gives up when its start takes long.
        server([*ours, "serve", str(ports["serve"]), str(folder)], ports["serve"], log=logs["serve"]) as serve,
        server([*ours, "bare", str(ports["uvicorn"]), str(folder)], ports["uvicorn"], log=logs["uvicorn"]) as uvicorn,
        server(
            litellm_command(programs, ports["litellm"], folder), ports["litellm"], env=QUIET, log=logs["litellm"]
        ) as litellm,
    ):
        key = "cgk_" + logs["serve"].read_text().split("ready cgk_")[1].split()[0]
        rounds: dict[str, list[dict[int, Measured]]] = {"bare_uvicorn": [], "bare_serve": [], "ours": [], "litellm": []}
        for _ in range(ROUNDS):
            rounds["bare_uvicorn"].append(at_all_sizes(ports["uvicorn"], PATH, {}, SECONDS))
            rounds["bare_serve"].append(at_all_sizes(ports["serve"], f"/bare{PATH}", {}, SECONDS))
            rounds["ours"].append(at_all_sizes(ports["serve"], PATH, bearer(key), SECONDS))
            rounds["litellm"].append(at_all_sizes(ports["litellm"], PATH, bearer(LITELLM_KEY), 2 * SECONDS))
        family = [serve, *serve.children(recursive=True)]
        memory = {
            "replica_mb": rss_mb(family, named="ServeReplica:platform"),
            "haproxy_mb": rss_mb(family, named="haproxy"),
            "ray_and_serve_mb": rss_mb(family),
            "bare_uvicorn_mb": rss_mb([uvicorn, *uvicorn.children(recursive=True)]),
            "litellm_mb": rss_mb([litellm, *litellm.children(recursive=True)]),
        }
        return {
            "rounds": rounds,
            "memory": {name: round(size) for name, size in memory.items()},
            "soak": soak(ports["serve"], key, family),
            "version": version,
        }


def soak(port: int, key: str, family: list[psutil.Process]) -> dict[str, Any]:
    """Whole answers, streams, and streams whose client leaves, until 100,000 were asked for; the replica's memory after
    the first tenth and at the end."""
    streamed = {**BODY, "stream": True}

    def some(body: dict[str, Any], num_requests: int, abort_every: int = 0) -> Measured:
        return measure(
            Plan(
                port=port,
                path=PATH,
                body=body,
                headers=bearer(key),
                connections=32,
                seconds=240,
                warmup_s=0,
                num_requests=num_requests,
                abort_every=abort_every,
            )
        )

    sizes, done = [], {"whole": 0, "streamed": 0, "aborted": 0, "failed": 0}
    for _ in range(10):
        whole = some(BODY, SOAK_REQUESTS * 8 // 100)
        events = some(streamed, SOAK_REQUESTS * 2 // 100, abort_every=10)
        done["whole"] += whole.num_ok
        done["streamed"] += events.num_ok
        done["aborted"] += events.num_aborted
        done["failed"] += whole.num_failed + events.num_failed
        sizes.append(round(rss_mb(family, named="ServeReplica:platform"), 1))
    return {"replica_mb": sizes, **done}


def rounded(found: dict[int, Measured]) -> dict[str, Any]:
    return {
        str(size): {name: round(value, 2) for name, value in asdict(measured).items()}
        for size, measured in found.items()
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        found = side_by_side(Path(name))
    ours, bare, uvicorn, rival = (median(found["rounds"][n]) for n in ("ours", "bare_serve", "bare_uvicorn", "litellm"))
    memory, soaked = found["memory"], found["soak"]
    sizes = soaked["replica_mb"]
    all_of = {"ours": ours, "bare_serve": bare, "bare_uvicorn": uvicorn, f"litellm_{found['version']}": rival}
    details = {name: rounded(measured) for name, measured in all_of.items()}
    # Of each round, because the two of one round met the same machine.
    added_ms = statistics.median(
        mine[1].p50_ms - other[1].p50_ms
        for mine, other in zip(found["rounds"]["ours"], found["rounds"]["bare_serve"], strict=True)
    )
    write_report(
        "gateway",
        {
            "rps_vs_litellm": figure(ours[32].rps / rival[32].rps, "x", at_least=20, by_connections=details),
            "p99_vs_litellm": figure(ours[32].p99_ms / rival[32].p99_ms, "x", at_most=0.1),
            "rps_vs_uvicorn": figure(ours[32].rps / uvicorn[32].rps, "x", at_least=0.35),
            "rps_vs_bare_serve": figure(ours[32].rps / bare[32].rps, "x"),
            "added_latency_ms": figure(added_ms, "ms", at_most=1.0),
            "rps": figure(ours[32].rps, "requests/s"),
            "p99_ms": figure(ours[32].p99_ms, "ms"),
            "replica_rss_mb": figure(memory.pop("replica_mb"), "MB", **memory),
            "rss_growth": figure(sizes[-1] / sizes[0] - 1, "of the replica's memory", at_most=0.02, **soaked),
        },
    )


if __name__ == "__main__":
    main()
