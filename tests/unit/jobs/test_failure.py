from __future__ import annotations

import pytest

from chatgrpo.jobs.failure import Cause, classify, explain

# What Ray says of a worker that somebody killed.
GONE = (
    "WorkerHealthCheckFailedError: The actor is dead because its worker process has died. Worker exit type: "
    "SYSTEM_ERROR Worker exit detail: Worker unexpectedly exits with a connection error code 2. End of file. Some "
    "common causes include: (1) the process was killed by the OOM killer due to high memory usage, (2) ray stop "
    "--force was called."
)


@pytest.mark.parametrize(
    ("log", "exit_code", "cause"),
    [
        (GONE, 1, Cause.WORKER_LOST),
        ("torch.OutOfMemoryError: CUDA out of memory", 1, Cause.OUT_OF_MEMORY),
        ("Task was killed due to the node running low on memory.", 1, Cause.OUT_OF_MEMORY),
        ("ray.exceptions.NodeDiedError: the node was terminated\n" + GONE, 1, Cause.NODE_LOST),
        ("", -9, Cause.WORKER_LOST),
        ("", 137, Cause.WORKER_LOST),
        ("ValueError: no such column", 1, Cause.USER),
    ],
)
def test_the_cause_is_what_happened_and_not_what_may_have(log: str, exit_code: int, cause: Cause) -> None:
    assert classify(result=None, message="", log=log, exit_code=exit_code) is cause


def test_a_guess_is_no_explanation() -> None:
    said = explain(result={"error": GONE}, message="", log="")
    assert said.endswith("End of file.")
