"""pydantic's findings about a settings file as the one line a user reads: file, key, value, and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from pydantic import BaseModel, ValidationError

from sparsevit.errors import UserError
from sparsevit.search.study_file import Settings
from sparsevit.search.urls import masked


def validation_error(error: ValidationError, model: type[BaseModel], settings: Settings) -> UserError:
    """The first finding of `error`, with the number of the others; passwords in it are hidden.

    An unknown key comes before a missing one: it is the same key, misspelt.
    """
    findings = error.errors(include_url=False)
    first = next((one for one in findings if one["type"] == "extra_forbidden"), findings[0])
    keys = [part for part in first["loc"] if isinstance(part, str)]
    name = ".".join(keys)
    if first["type"] == "extra_forbidden":
        text = f"unknown key {name}; {nearest(keys[-1], _fields(model, keys[:-1]))}"
    elif first["type"] == "missing":
        text = f"{name} is missing{_description(model, keys)}"
    else:
        message = first["msg"].removeprefix("Value error, ")
        value = "" if isinstance(first["input"], dict) else f" = {first['input']!r}"
        text = f"{name}{value}: {message[:1].lower()}{message[1:]}{_description(model, keys)}"
    more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
    return UserError(masked(" ".join(f"{settings.place(tuple(keys))}: {text}{more}".split())))


def nearest(key: str, allowed: Iterable[str]) -> str:
    """`did you mean images? allowed: …`."""
    names = sorted(allowed)
    close = get_close_matches(key, names, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}allowed: {', '.join(names) or 'none'}"


def _fields(model: type[BaseModel], keys: Sequence[str]) -> list[str]:
    for key in keys:
        field = model.model_fields.get(key)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return []
        model = field.annotation
    return list(model.model_fields)


def _description(model: type[BaseModel], keys: Sequence[str]) -> str:
    """What a key is for, where its field says so."""
    description: str | None = None
    for key in keys:
        field = model.model_fields.get(key)
        if field is None:
            break
        description = field.description
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            model = field.annotation
            if key == keys[-1]:
                required = [name for name, one in model.model_fields.items() if one.is_required()]
                description = f"a table with {', '.join(required)}" if required else None
    return f"; {description}" if description else ""
