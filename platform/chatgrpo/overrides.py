"""`--set key=value` on top of a YAML file: dotted paths, YAML values, unknown names refused with the nearest known one.

apply_overrides({"seed": 1}, ["seed=2", "lora.r=8", "rewards.0.weight=0.5"], TrainConfig)
"""

from __future__ import annotations

import copy
import types
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from chatgrpo.errors import InvalidRequest


def apply_overrides(data: Mapping[str, Any], overrides: Sequence[str], model: type[BaseModel]) -> dict[str, Any]:
    """A copy of `data` with the overrides in it. Names are checked against `model`; values are checked by whoever
    validates the result. Raises InvalidRequest naming the override."""
    result = copy.deepcopy(dict(data))
    for override in overrides:
        path, separator, text = override.partition("=")
        if not separator or not path:
            raise InvalidRequest(f"{override!r} is not of the form key=value", "--set")
        keys = path.split(".")
        _check(keys, model, path)
        _put(result, keys, _value(text, path), path)
    return result


def _value(text: str, path: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidRequest(f"{text!r} is not a YAML value; quote it", path) from error
    # YAML 1.1 reads 1e-5 as text because it has no dot; nobody who types it means text.
    if isinstance(value, str) and value == text:
        try:
            return float(text)
        except ValueError:
            return value
    return value


def _put(data: dict[str, Any], keys: Sequence[str], value: Any, path: str) -> None:
    here: Any = data
    for key, following in zip(keys, [*keys[1:], None], strict=True):
        place: Any = key
        if isinstance(here, list):
            if not key.isdecimal() or int(key) >= len(here):
                raise InvalidRequest(f"{key!r} is not an index of a list of {len(here)}", path)
            place = int(key)
        elif not isinstance(here, dict):
            raise InvalidRequest(f"{key!r} is inside {here!r}, which has no fields", path)
        if following is None:
            here[place] = value
            return
        if isinstance(here, dict) and here.get(place) is None:
            here[place] = {}
        here = here[place]


def _check(keys: Sequence[str], annotation: Any, path: str) -> None:
    """Follows the path through models; what lies in a plain mapping or behind Any is free."""
    for i, key in enumerate(keys):
        models = list(_models(annotation))
        if not models:
            return
        if key.isdecimal() and i:
            continue
        fields = [(field.alias or name, field.annotation) for m in models for name, field in m.model_fields.items()]
        known = sorted({name for name, _ in fields})
        if key not in known:
            near = get_close_matches(key, known, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
            raise InvalidRequest(f"unknown field {key!r}; {hint}", path)
        # The same name may have another type in another variant of a union.
        annotation = Union[tuple(kind for name, kind in fields if name == key)]  # noqa: UP007


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that a value of this type may be, through Optional, unions, lists and Annotated."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        return
    origin = get_origin(annotation)
    if origin in {Union, types.UnionType, list, tuple} or hasattr(annotation, "__metadata__"):
        for part in get_args(annotation):
            yield from _models(part)
