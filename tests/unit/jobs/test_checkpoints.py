from __future__ import annotations

from pathlib import Path

import pytest

from chatgrpo.jobs import checkpoints
from chatgrpo.jobs.checkpoints import Entry


def save(root: Path, step: int, text: str = "weights", **metrics: float) -> Path:
    def write(into: Path) -> None:
        (into / "sub").mkdir()
        (into / "sub" / "model.bin").write_text(text)

    return checkpoints.save_atomic(checkpoints.folder(root, step), write, created_at=float(step), metrics=metrics)


def test_a_published_checkpoint_is_whole_and_listed(tmp_path: Path) -> None:
    path = save(tmp_path, 50, reward=0.5)

    assert checkpoints.latest_valid(tmp_path) == path
    assert checkpoints.entries(tmp_path) == [
        Entry(step=50, path=path, created_at=50.0, size_bytes=7, metrics={"reward": 0.5})
    ]


def test_a_writer_that_fails_publishes_nothing(tmp_path: Path) -> None:
    def write(into: Path) -> None:
        (into / "half").write_text("x")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoints.save_atomic(checkpoints.folder(tmp_path, 1), write)

    assert checkpoints.latest_valid(tmp_path) is None
    checkpoints.sweep_partial(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "manifest"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path, damage: str) -> None:
    good, bad = save(tmp_path, 1), save(tmp_path, 2)
    file = bad / "sub" / "model.bin"
    match damage:
        case "flip":
            file.write_text("weightz")
        case "truncate":
            file.write_text("weig")
        case "delete":
            file.unlink()
        case _:
            (bad / "manifest.json").write_text("{")

    assert checkpoints.latest_valid(tmp_path) == good


def test_the_same_step_again_replaces_the_old_one(tmp_path: Path) -> None:
    save(tmp_path, 1, "old")
    path = save(tmp_path, 1, "new")

    assert (path / "sub" / "model.bin").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_latest_best_and_every_nth_are_kept(tmp_path: Path) -> None:
    rewards = {10: 0.1, 20: 0.9, 30: 0.3, 40: 0.9, 50: 0.2, 60: 0.4}
    found = [Entry(step=s, path=tmp_path / str(s), metrics={"eval_reward": r}) for s, r in rewards.items()]

    def kept(**policy: int) -> list[int]:
        gone = {e.step for e in checkpoints.surplus(found, **policy)}  # type: ignore[arg-type]
        return [s for s in rewards if s not in gone]

    assert kept(limit=2, best=0) == [50, 60]
    assert kept(limit=1, best=1) == [40, 60]
    assert kept(limit=1, best=2) == [20, 40, 60]
    assert kept(limit=1, best=0, every=30) == [30, 60]


def test_retain_deletes_and_the_best_stays(tmp_path: Path) -> None:
    for step, reward in ((1, 0.2), (2, 0.8), (3, 0.1), (4, 0.3)):
        save(tmp_path, step, eval_reward=reward)

    checkpoints.retain(tmp_path, 1)

    assert [e.step for e in checkpoints.entries(tmp_path)] == [2, 4]
    best = checkpoints.best_valid(tmp_path)
    assert best is not None
    assert best.path == checkpoints.folder(tmp_path, 2)
