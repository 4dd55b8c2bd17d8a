"""Tasks from files: every format, broken lines by place, a hold-out that follows from the text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatgrpo.environments.base import Task
from chatgrpo.environments.config import DatasetConfig, PromptsConfig
from chatgrpo.environments.dataset import split_tasks, task_of_row
from chatgrpo.environments.files import Row
from chatgrpo.environments.registry import build_source
from chatgrpo.errors import InvalidRequest

ROWS: list[dict[str, Any]] = [{"prompt": f"question {i}", "answer": str(i), "level": i % 3} for i in range(40)]


def tasks(path: Path | str, split: str = "train", *, num_eval: int = 0, **fields: Any) -> list[Task]:
    config = DatasetConfig(paths=[str(path)], **fields)
    source = build_source(config, split=split, seed=0, num_eval=num_eval)  # type: ignore[arg-type]
    return [source.task(i) for i in range(len(source))]


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write(kind: str, folder: Path) -> Path:
    table = pa.Table.from_pylist(ROWS)
    match kind:
        case "jsonl":
            return jsonl(folder / "a.jsonl", *ROWS)
        case "json":
            (folder / "a.json").write_text(json.dumps(ROWS))
            return folder / "a.json"
        case "parquet":
            pq.write_table(table, folder / "a.parquet")
            return folder / "a.parquet"
        case "folder":
            jsonl(folder / "1.jsonl", *ROWS[:10])
            pq.write_table(table.slice(10), folder / "2.parquet")
            return folder
        case "dataset_dict":
            (folder / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
            return write("saved", folder / "train").parent
        case _:
            folder.mkdir(exist_ok=True)
            with (
                pa.OSFile(str(folder / "data-00000.arrow"), "wb") as sink,
                pa.ipc.new_stream(sink, table.schema) as out,
            ):
                out.write_table(table)
            (folder / "state.json").write_text('{"_data_files": [{"filename": "data-00000.arrow"}]}')
            (folder / "dataset_info.json").write_text("{}")
            return folder


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "folder", "saved", "dataset_dict"])
def test_every_format_gives_the_same_tasks(kind: str, tmp_path: Path) -> None:
    loaded = tasks(write(kind, tmp_path))
    assert [(t.messages[0].content, t.answer, t.metadata) for t in loaded] == [
        (row["prompt"], row["answer"], {"level": row["level"]}) for row in ROWS
    ]
    assert loaded[0].task_id == tasks(jsonl(tmp_path / "again.jsonl", ROWS[0]))[0].task_id


def test_prompts_of_a_request_are_tasks() -> None:
    config = PromptsConfig(prompts=["b", "a", "b"], system_prompt="Be kind.")
    source = build_source(config, split="train", seed=0, num_eval=0)
    assert [[m.content for m in source.task(i).messages] for i in range(len(source))] == [
        ["Be kind.", "b"],
        ["Be kind.", "a"],
    ]
    many = PromptsConfig(prompts=[f"question {i}" for i in range(40)])
    sides = [build_source(many, split=split, seed=0, num_eval=5) for split in ("train", "eval")]
    train, held_out = ({side.task(i).messages[0].content for i in range(len(side))} for side in sides)
    assert (len(held_out), train & held_out) == (len(sides[1]), set())
    assert 1 <= len(held_out) <= 5


def test_an_exported_conversation_is_asked_again(tmp_path: Path) -> None:
    line = {
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}],
        "answer": None,
        "score": 0.5,
        "version": 4,
    }
    (task,) = tasks(jsonl(tmp_path / "a.jsonl", line), system_prompt="Be kind.")
    assert [(m.role, m.content) for m in task.messages] == [("system", "Be kind."), ("user", "hi")]
    assert task.answer is None
    assert task.metadata == {"score": 0.5, "version": 4, "reference": "hello"}


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"prompt": "a"', "not valid JSON"),
        ("[1]", "expected an object, got list"),
        ("{}", "expected one of `prompt` and `messages`, got neither"),
        ('{"prompt": "a", "messages": []}', "got both"),
        ('{"prompt": 3}', "expected text or a list of messages, got int"),
        ('{"messages": []}', "expected text or a list of messages, got list"),
        ('{"messages": [{"role": "boss", "content": "a"}]}', "message 1: role: 'boss' is not one of"),
        ('{"messages": [{"role": "user", "content": null}]}', "message 1: content: expected text, got NoneType"),
        ('{"messages": ["hi"]}', "message 1: expected an object with role and content, got str"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "needs a message with role user"),
        ('{"prompt": "a", "answer": ["b"]}', "`answer` must be text or a number, got list"),
    ],
)
def test_a_broken_line_is_named_by_file_and_line(line: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "fine"}\n\n' + line + "\n")
    with pytest.raises(InvalidRequest) as caught:
        tasks(path)
    assert caught.value.message.startswith(f"{path}:3: ")
    assert what in caught.value.message


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_text("no parquet")
    (tmp_path / "a.csv").write_text("a,b")
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "object.json").write_text('{"prompt": "a"}')
    (tmp_path / "broken.json").write_text('[\n{"prompt": "a",}]')
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "\xe9"}\n')
    for name, what in {
        "bad.parquet": "not a readable parquet file",
        "a.csv": r"cannot read \.csv; give \.jsonl",
        "empty.jsonl": "no rows",
        "object.json": "expected an array of objects, got dict",
        "broken.json": r"broken\.json:2: not valid JSON",
        "latin.jsonl": r"latin\.jsonl:1: not valid JSON",
        "missing.jsonl": "no such file or folder",
    }.items():
        with pytest.raises(InvalidRequest, match=what):
            tasks(tmp_path / name)
    empty = tmp_path / "folder"
    empty.mkdir()
    with pytest.raises(InvalidRequest, match="in it"):
        tasks(empty)


def test_numbers_are_answers_too(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "answer": 3}, {"prompt": "b", "answer": 3.0}, {"prompt": "c", "answer": 0.5}]
    assert [t.answer for t in tasks(jsonl(tmp_path / "a.jsonl", *rows))] == ["3", "3", "0.5"]


@given(
    prompts=st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=30),
    fraction=st.floats(0, 0.9),
    num_eval=st.integers(0, 10),
)
def test_hold_out_never_overlaps_and_never_takes_all(prompts: list[str], fraction: float, num_eval: int) -> None:
    rows = [Row(where="x:1", values={"prompt": p, "answer": str(i)}) for i, p in enumerate(prompts)]
    config = DatasetConfig(paths=["x"], eval_fraction=fraction)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("chatgrpo.environments.dataset.read_rows", lambda paths, split="train": rows)
        train, held_out = (split_tasks(config, task_of_row, split=s, num_eval=num_eval) for s in ("train", "eval"))
    train_questions, eval_questions = ({t.messages[0].content for t in part} for part in (train, held_out))
    assert not train_questions & eval_questions
    assert train
    assert len(held_out) <= num_eval


def test_more_rows_move_no_question_to_the_other_side(tmp_path: Path) -> None:
    few = jsonl(tmp_path / "few.jsonl", *ROWS[:20])
    many = jsonl(tmp_path / "many.jsonl", *ROWS)
    before = {t.task_id for t in tasks(few, "eval", num_eval=100, eval_fraction=0.3)}
    after = {t.task_id for t in tasks(many, "eval", num_eval=100, eval_fraction=0.3)}
    assert before
    assert before < after


def test_what_occurs_in_eval_paths_is_taken_out_of_training(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "train.jsonl", *ROWS)
    held_out = jsonl(tmp_path / "eval.jsonl", *ROWS[:5], {"prompt": "other"})
    fields = {"num_eval": 10, "eval_paths": [str(held_out)]}
    assert len(tasks(train, "train", **fields)) == 35
    assert len(tasks(train, "eval", **fields)) == 6
