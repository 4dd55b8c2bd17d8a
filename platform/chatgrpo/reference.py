"""Every field of a configuration with its default and meaning, read off the model itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined


@dataclass(frozen=True, slots=True)
class FieldLine:
    """`name` is the dotted path as `--set` takes it; a variant of a section reads `environment[dataset].paths`."""

    name: str
    default: str
    description: str


def fields_of(model: type[BaseModel], prefix: str = "") -> Iterator[FieldLine]:
    """Depth first, in the order of definition."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        yield FieldLine(path, _default(field), field.description or "")
        variants = list(_models_in(field.annotation))
        for variant in variants:
            kind = variant.model_fields.get("type")
            label = f"{path}[{kind.default}]" if kind is not None and len(variants) > 1 else path
            yield from (line for line in fields_of(variant, f"{label}.") if not line.name.endswith(".type"))


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined or isinstance(value, BaseModel):
        return ""
    if isinstance(value, list) and any(isinstance(item, BaseModel) for item in value):
        value = [item.model_dump() for item in value]
    return json.dumps(value, default=str)
