"""A study file with the files it extends and what `--set` says, as nested tables; knows where every value stands."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparsevit.assets import asset
from sparsevit.errors import UserError
from sparsevit.search.urls import masked

EXTENDS = "extends"
"""Key of a study file that names another one, whose values count where it has none of its own."""

Key = tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """Where a value stands.

    Attributes:
        name: a file as the user wrote it, or `--set`.
        folder: where a relative path there starts.
    """

    name: str
    folder: Path


SET = "--set"


@dataclass
class Settings:
    """Tables of a study, and the source of each value in them by its key; tables have none.

    All are equal: where its values stand makes no study another one.
    """

    file: str = field(compare=False)
    folder: Path = field(compare=False)
    tables: dict[str, Any] = field(default_factory=dict, compare=False)
    sources: dict[Key, Source] = field(default_factory=dict, compare=False)

    def place(self, key: Key) -> str:
        """Where to look for `key`: its file, with `--set` if it was given there; the study file if it is nowhere."""
        found = {one for known, one in self.sources.items() if known[: len(key)] == key}
        name = found.pop().name if len(found) == 1 else self.file
        return f"{self.file} with {SET}" if name == SET else name

    def overlay(self, tables: Mapping[str, Any], source: Source) -> None:
        """Let these values count in place of what is there; tables are merged, all else is replaced.

        Raises:
            UserError: if `--set` goes into what is no table.
        """
        self._overlay(self.tables, tables, source, ())

    def _overlay(self, onto: dict[str, Any], tables: Mapping[str, Any], source: Source, above: Key) -> None:
        for name, value in tables.items():
            key = (*above, name)
            if isinstance(value, Mapping):
                if not isinstance(onto.get(name, {}), dict):
                    if source.name == SET:
                        raise UserError(f"{self.file} with {SET}: {'.'.join(key)} is a value, not a table")
                    self._drop(onto, key)
                self._overlay(onto.setdefault(name, {}), value, source, key)
            else:
                self._drop(onto, key)
                onto[name] = value
                self.sources[key] = source

    def _drop(self, table: dict[str, Any], key: Key) -> None:
        table.pop(key[-1], None)
        for known in [one for one in self.sources if one[: len(key)] == key]:
            del self.sources[known]


def read_settings(path: Path, overrides: Sequence[str] = ()) -> Settings:
    """Read a study file and those it extends.

    Args:
        path: the file; where there is none, one of that name that comes with the package (`studies/digits.toml`).
        overrides: `key.sub=value` each, the value written as in TOML; what TOML cannot read is a text.

    Raises:
        UserError: if a file is missing or is no TOML, files extend each other in a circle, or `--set` cannot be read.
    """
    file = _find(path)
    settings = Settings(str(path), file.resolve().parent)
    for tables, source in reversed(_chain(file, str(path))):
        settings.overlay(tables, source)
    for text in overrides:
        settings.overlay(_override(text), Source(SET, settings.folder))
    return settings


def _chain(file: Path, name: str) -> list[tuple[dict[str, Any], Source]]:
    """The tables of a file, then of the one it extends, and so on."""
    links: list[tuple[dict[str, Any], Source]] = []
    seen: list[Path] = []
    while True:
        tables = _parse(file, name)
        base = tables.pop(EXTENDS, None)
        links.append((tables, Source(name, file.resolve().parent)))
        seen.append(file.resolve())
        if base is None:
            return links
        said = f"{name}: {EXTENDS} = {base!r}"
        if not isinstance(base, str) or not base.strip():
            raise UserError(f'{said}: name one study file, relative to this one, as {EXTENDS} = "other.toml"')
        file, name = _base(file, name, base.strip(), said)
        if file.resolve() in seen:
            circle = " -> ".join([*(one.name for one in seen), file.name])
            raise UserError(f"{said}: files extend each other in a circle, {circle}; take one of these lines out")


def _base(file: Path, name: str, base: str, said: str) -> tuple[Path, str]:
    """The file that `base` names in `file`, and how it is shown."""
    if base.startswith("builtin:"):
        try:
            return asset("studies", base.removeprefix("builtin:")), base
        except UserError as error:
            raise UserError(f"{said}: {error}") from None
    found = file.resolve().parent / Path(base).expanduser()
    if not found.is_file():
        raise UserError(f"{said}: there is no such file (looked for {found})")
    return found, str(Path(name).parent / base)


def _parse(file: Path, name: str) -> dict[str, Any]:
    try:
        return _with_flat_layers(tomllib.loads(file.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{name} is not TOML: {error}") from None
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror}") from None


def _find(path: Path) -> Path:
    if path.is_file():
        return path
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a study file")
    try:
        return asset("studies", path.relative_to("studies").as_posix())
    except (UserError, ValueError):
        raise UserError(f"there is no study file {path}") from None


def _override(text: str) -> dict[str, Any]:
    """The tables that one `key.sub=value` stands for."""
    key, equals, value = text.partition("=")
    try:
        if not equals or "\n" in key:
            raise ValueError
        tables = tomllib.loads(f"{key.strip()} = 0")
    except ValueError:  # TOMLDecodeError is one
        said = f"cannot read {SET} {masked(text)!r}"
        raise UserError(f"{said}: write it as key.sub=value, for example search.trials=50") from None
    table = tables
    while isinstance(inner := next(iter(table.values())), dict):
        table = inner
    table[next(iter(table))] = _toml_value(value.strip())
    return _with_flat_layers(tables)


def _toml_value(text: str) -> Any:
    try:
        parsed: Mapping[str, Any] = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _with_flat_layers(tables: dict[str, Any]) -> dict[str, Any]:
    """`space.layers` with one key for each layer: TOML reads an unquoted `s3.2` as a table `s3` with a key `2`."""
    space = tables.get("space")
    layers = space.get("layers") if isinstance(space, dict) else None
    if not isinstance(space, dict) or not isinstance(layers, dict):
        return tables
    flat: dict[str, Any] = {}
    for name, value in layers.items():
        flat |= {f"{name}.{key}": one for key, one in value.items()} if isinstance(value, dict) else {name: value}
    return {**tables, "space": {**space, "layers": flat}}
