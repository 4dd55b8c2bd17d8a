"""Rows of data files, each with the place it came from, so that a mistake is found by file and line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatgrpo.errors import InvalidRequest

SUFFIXES = {".jsonl", ".json", ".parquet", ".arrow"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """`where` reads `file:line` (JSONL), `file:item 3` (JSON array) or `file:row 3` (Parquet, Arrow), from 1."""

    where: str
    values: dict[str, Any]

    def broken(self, what: str) -> InvalidRequest:
        return InvalidRequest(f"{self.where}: {what}", "environment.paths")


def read_rows(paths: Sequence[str], *, split: str = "train") -> list[Row]:
    """All rows of the files and folders, in order. `split`: which part of a saved DatasetDict to read.

    Raises InvalidRequest naming file and line for what is missing, broken, empty or of an unknown kind."""
    rows = [row for path in paths for row in _read(Path(path).expanduser(), split)]
    if not rows:
        raise InvalidRequest(f"{', '.join(paths)}: no rows; give files with at least one task", "environment.paths")
    return rows


def _read(path: Path, split: str) -> Iterator[Row]:
    if path.is_dir():
        for file in _files_of(path, split):
            yield from _read(file, split)
        return
    if not path.is_file():
        raise InvalidRequest(f"{path}: no such file or folder", "environment.paths")
    match path.suffix:
        case ".jsonl":
            yield from _jsonl(path)
        case ".json":
            yield from _json(path)
        case ".parquet" | ".arrow":
            yield from _table(path)
        case _:
            raise InvalidRequest(
                f"{path}: cannot read {path.suffix or 'files without suffix'}; give .jsonl, .json, .parquet or .arrow",
                "environment.paths",
            )


def _files_of(folder: Path, split: str) -> list[Path]:
    """A folder of `save_to_disk` names its parts in JSON files; any other is all data files directly in it."""
    if (folder / "dataset_dict.json").is_file():
        splits = _parse(folder / "dataset_dict.json")["splits"]
        if split not in splits:
            raise InvalidRequest(f"{folder}: has no split {split!r}, only {', '.join(splits)}", "environment.paths")
        return _files_of(folder / split, split)
    if (folder / "state.json").is_file():
        return [folder / part["filename"] for part in _parse(folder / "state.json")["_data_files"]]
    files = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES)
    if not files:
        raise InvalidRequest(f"{folder}: no .jsonl, .json, .parquet or .arrow file in it", "environment.paths")
    return files


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                values = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise InvalidRequest(f"{where}: not valid JSON: {error}", "environment.paths") from error
            yield _row(where, values)


def _json(path: Path) -> Iterator[Row]:
    values = _parse(path)
    if not isinstance(values, list):
        raise InvalidRequest(f"{path}: expected an array of objects, got {type(values).__name__}", "environment.paths")
    for number, value in enumerate(values, start=1):
        yield _row(f"{path}:item {number}", value)


def _parse(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"{path}:{error.lineno}: not valid JSON: {error.msg}", "environment.paths") from error
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{path}: not UTF-8: {error}", "environment.paths") from error


def _row(where: str, values: Any) -> Row:
    if not isinstance(values, dict):
        raise InvalidRequest(f"{where}: expected an object, got {type(values).__name__}", "environment.paths")
    return Row(where=where, values=values)


def _table(path: Path) -> Iterator[Row]:
    # Imported here: JSON files need none of it.
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix == ".parquet":
            batches: Any = pq.ParquetFile(path).iter_batches()
        else:
            batches = pa.ipc.open_stream(pa.memory_map(str(path)))
        number = 0
        for batch in batches:
            for values in batch.to_pylist():
                number += 1
                yield Row(where=f"{path}:row {number}", values=values)
    except (pa.ArrowInvalid, OSError) as error:
        raise InvalidRequest(f"{path}: not a readable {path.suffix[1:]} file: {error}", "environment.paths") from error
