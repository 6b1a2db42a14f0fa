"""A study as one TOML file, every value with where it came from; read back, it is the same study."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from sparsevit.search.bounds import Limit
from sparsevit.search.spec import StudySpec
from sparsevit.search.urls import masked

_SPELLED: dict[tuple[str, ...], str] = {
    ("latency", "min"): "none",
    ("search", "time_limit"): "none",
    ("accuracy", "images"): "all",
    ("accuracy", "confirm_images"): "all",
}
"""Keys whose absence can be written."""


def resolved_lines(spec: StudySpec) -> list[str]:
    """Lines of TOML, each value with `# source`: a file, `--set`, or `default`. Passwords are hidden."""
    rows: list[tuple[str, str]] = []
    for name in type(spec).model_fields:
        value = getattr(spec, name)
        if isinstance(value, BaseModel):
            _table(rows, spec, (name,), _fields(value))
        else:
            rows.append((f"{name} = {_toml(value)}", _source(spec, (name,))))
    width = max((len(text) for text, source in rows if source), default=0)
    width = min(width, 60)
    return [f"{text:<{width}}  # {source}" if source else text for text, source in rows]


def _table(rows: list[tuple[str, str]], spec: StudySpec, key: tuple[str, ...], values: Mapping[str, Any]) -> None:
    before = len(rows)
    rows.append((f"[{'.'.join(key)}]", ""))
    inner = {name: value for name, value in values.items() if isinstance(value, Mapping) and value}
    for name, value in values.items():
        if name in inner or value is None or value == {}:
            if value is None and (*key, name) in _SPELLED:
                rows.append((f'{name} = "{_SPELLED[(*key, name)]}"', _source(spec, (*key, name))))
            continue
        rows.append((f"{_key(name)} = {_toml(value)}", _source(spec, (*key, name))))
    if len(rows) == before + 1 and not inner:
        rows.pop()
    for name, value in inner.items():
        _table(rows, spec, (*key, _key(name)), value)


def _fields(model: BaseModel) -> dict[str, Any]:
    return {name: getattr(model, name) for name in type(model).model_fields} | (model.model_extra or {})


def _source(spec: StudySpec, key: tuple[str, ...]) -> str:
    plain = tuple(part.strip('"') for part in key)
    found = {one.name for known, one in spec.settings.sources.items() if known[: len(plain)] == plain}
    return ", ".join(sorted(found)) or "default"


def _key(name: str) -> str:
    return name if re.fullmatch(r"[\w-]+", name, re.ASCII) else json.dumps(name)


def _toml(value: Any) -> str:
    if isinstance(value, Limit):
        return json.dumps(str(value)) if value.is_share else f"{value.value:g}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(name)} = {_toml(one)}" for name, one in value.items()) + "}"
    if isinstance(value, bool | int):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}" if value == float(f"{value:g}") else repr(value)
    return json.dumps(masked(str(value)), ensure_ascii=False)
