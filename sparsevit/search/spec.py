"""The study file: everything a search is, as one frozen value read from TOML. Unknown keys are refused."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from sparsevit.assets import asset
from sparsevit.errors import UserError
from sparsevit.latency.target import Target
from sparsevit.search.bounds import Limit, parse_limit
from sparsevit.search.spec_errors import validation_error
from sparsevit.sparsity import PAPER_GRID, SparsitySpace

Count = Annotated[int, Field(strict=True, ge=1)]
Number = Annotated[float, Field(strict=True)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)


class SupernetSpec(_Table):
    """`[supernet]`: what is searched. Keys besides these go to the factory as keyword arguments of the same name."""

    model_config = ConfigDict(frozen=True, extra="allow")

    evaluator: Annotated[
        str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", description="write it as package.module:factory")
    ] = "sparsevit.openmmlab:detector_evaluator"
    """`package.module:factory`; called with the other keys of this table and with `device` and `dtype` of the target,
    it returns an `Evaluator`."""
    config: str | None = None
    """The detector's config file, relative to the study file. `builtin:…`, or a word without `/` and suffix, is a name
    that the factory knows. A config file is code: it is executed."""
    checkpoint: str | None = None
    """The supernet's weights, given like `config`."""

    @field_validator("config", "checkpoint")
    @classmethod
    def _resolve(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None or not _is_path(value):
            return value
        path = (_folder(info) / Path(value).expanduser()).resolve()
        if not path.is_file():
            raise ValueError(f"there is no such file (looked for {path})")
        return str(path)

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for the factory: every key that was given, but for `evaluator`."""
        given = {"config": self.config, "checkpoint": self.checkpoint}
        return {key: value for key, value in given.items() if value is not None} | (self.model_extra or {})


class SpaceSpec(_Table):
    """`[space]`: the pruning ratios to choose from; the layers are the backbone's."""

    ratios: tuple[Number, ...] = tuple(float(value) for value in PAPER_GRID)
    """The grid, strictly increasing, each `0 <= ratio < 1`."""

    @field_validator("ratios")
    @classmethod
    def _check(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        _as_value_error(lambda: _space((2,), value))
        return value

    def of(self, depths: Sequence[int]) -> SparsitySpace:
        """This space for a backbone of these depths."""
        return _space(tuple(depths), self.ratios)


class TargetSpec(_Table):
    """`[target]`: what a latency is a latency of."""

    device: str = "auto"
    """`auto`, `cpu`, or `cuda:0`."""
    dtype: str = "float32"
    batch: Count = 1
    """Images per call; a latency is of the whole batch."""
    size: Annotated[tuple[Count, Count], Field(description="height and width in pixels, as [448, 448]")] = (448, 448)
    """Height and width of an image, pixels."""
    engine: str = "eager"
    scope: str = "backbone"
    threads: Annotated[int, Field(strict=True, ge=0)] = 0
    """CPU threads; 0 for all."""

    @model_validator(mode="after")
    def _check(self) -> TargetSpec:
        _as_value_error(self.target)
        return self

    def target(self) -> Target:
        """The target as written; `resolve()` it for this machine."""
        return Target(**self.model_dump())


class LatencySpec(_Table):
    """`[latency]`: the bounds. A number is milliseconds, a text like `"70%"` a share of the dense latency."""

    max: Annotated[Limit, Field(description='milliseconds, or a share of the dense latency as "70%"')]
    """No configuration above this is ever evaluated."""
    min: Limit | None = None
    """Nor one below this; none by default."""
    error_limit: Annotated[Number, Field(gt=0)] | None = None
    """Mean error of the latency model (a fraction) from which on it is not trusted: more is measured, and if that does
    not help, every candidate. By default 0.01 where a GPU replays graphs, 0.04 where it runs eagerly, 0.05 on CPUs."""

    @field_validator("max", "min", mode="before")
    @classmethod
    def _check(cls, value: Any) -> Any:
        return None if value is None else parse_limit(value)

    @model_validator(mode="after")
    def _ordered(self) -> LatencySpec:
        if self.min is not None and self.min.is_share == self.max.is_share and self.min.value > self.max.value:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class AccuracySpec(_Table):
    """`[accuracy]`: what is maximised, and on how many images."""

    metric: Annotated[str, Field(min_length=1)] = "bbox_mAP"
    """One of the evaluator's metrics."""
    images: Count | None = None
    """The first so many images judge a trial; all of them by default."""
    confirm_images: Count | None = None
    """The first so many judge the front in the end; all of them by default."""


class SearchSpec(_Table):
    """`[search]`: how long and how."""

    sampler: Literal["nsga2"] = "nsga2"
    trials: Count = 100
    """Finished trials in total, those of earlier runs included."""
    population: Annotated[int, Field(strict=True, ge=2)] = 20
    """Trials of a generation. Small ones find more when trials are few."""
    confirm: Count = 12
    """At most so many configurations of the front are measured and evaluated again in the end."""
    seed: Annotated[int, Field(strict=True, ge=0)] = 0


class StorageSpec(_Table):
    """`[storage]`: where results go; relative paths here start in the folder the command runs in."""

    directory: str | None = None
    """Folder for database, finetune config and report; `runs/<name>` by default, and `--out` overrules it."""
    url: str | None = None
    """Another database, as SQLAlchemy writes it: `sqlite:///trials.db`, `postgresql+psycopg://user@host/name`."""


class StudySpec(_Table):
    """A whole study file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100,
                               description="letters, digits, '.', '_' and '-'")]  # fmt: skip
    """Names the study in its database, and the folder of its results."""
    supernet: SupernetSpec = Field(default_factory=SupernetSpec)
    space: SpaceSpec = Field(default_factory=SpaceSpec)
    target: TargetSpec = Field(default_factory=TargetSpec)
    latency: LatencySpec
    accuracy: AccuracySpec = Field(default_factory=AccuracySpec)
    search: SearchSpec = Field(default_factory=SearchSpec)
    storage: StorageSpec = Field(default_factory=StorageSpec)

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> StudySpec:
        """Read a study file.

        Args:
            path: the file; where there is none, one of that name that comes with the package (`studies/digits.toml`).
            overrides: `key.sub=value` each, the value written as in TOML; what TOML cannot read is a text.

        Raises:
            UserError: if the file is missing or is no TOML, or a key or value is wrong; names file, key and value.
        """
        file = _find(Path(path))
        try:
            data = tomllib.loads(file.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is not TOML: {error}") from None
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        for text in overrides:
            _override(data, text)
        try:
            return cls.model_validate(data, context={"folder": file.resolve().parent})
        except ValidationError as error:
            raise validation_error(error, cls, str(path)) from None

    def folder(self, out: str | Path | None = None) -> Path:
        """The folder of this study's results; `out` overrules the study file."""
        return Path(out or self.storage.directory or Path("runs") / self.name)

    def url(self, out: str | Path | None = None) -> str:
        """The database that keeps this study."""
        return self.storage.url or f"sqlite:///{self.folder(out) / 'study.db'}"


def _find(path: Path) -> Path:
    if path.is_file():
        return path
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a study file")
    try:
        return asset("studies", path.relative_to("studies").as_posix())
    except (UserError, ValueError):
        raise UserError(f"there is no study file {path}") from None


def _override(data: dict[str, Any], text: str) -> None:
    """Set one `key.sub=value` in the tables of a study file."""
    key, equals, value = text.partition("=")
    names = [name.strip() for name in key.split(".")]
    if not equals or not all(names):
        raise UserError(f"cannot read --set {text!r}: write it as key.sub=value, for example search.trials=50")
    table: Any = data
    for name in names[:-1]:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise UserError(f"--set {text}: {name} is a value, not a table")
    table[names[-1]] = _toml_value(value.strip())


def _toml_value(text: str) -> Any:
    try:
        parsed: Mapping[str, Any] = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _is_path(value: str) -> bool:
    """`builtin:digits` and `builtin` are names, `weights.pth` and `runs/adapt` are paths."""
    return re.match(r"\w{2,}:", value) is None and bool(re.search(r"[/\\]", value) or Path(value).suffix)


def _folder(info: ValidationInfo) -> Path:
    context: Mapping[str, Path] = info.context or {}
    return context.get("folder", Path())


def _space(depths: tuple[int, ...], ratios: Sequence[float]) -> SparsitySpace:
    return SparsitySpace(depths, tuple(ratios))  # type: ignore[arg-type]  # it makes its ratios exact


def _as_value_error(check: Any) -> None:
    """pydantic gathers ValueErrors and adds key and value to them."""
    try:
        check()
    except UserError as error:
        raise ValueError(str(error)) from None
