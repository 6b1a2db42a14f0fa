"""The study file: everything a search is, as one frozen value. Unknown keys are refused. Reading is `study_file`'s."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from sparsevit.errors import UserError
from sparsevit.latency.target import Target
from sparsevit.search.bounds import Limit, parse_limit
from sparsevit.search.duration import parse_duration
from sparsevit.search.restriction import LAYER, Restriction
from sparsevit.search.samplers import SamplerName
from sparsevit.search.score import joined, parts
from sparsevit.search.spec_errors import validation_error
from sparsevit.search.study_file import Settings, read_settings
from sparsevit.search.urls import expanded
from sparsevit.sparsity import PAPER_GRID, SparsitySpace, ratio

Count = Annotated[int, Field(strict=True, ge=1)]
Images = Annotated[int, Field(strict=True, ge=1)] | None
Number = Annotated[float, Field(strict=True)]
MetricName = Annotated[str, Field(min_length=1)]


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
    """The detector's config file, relative to the study file that names it. `builtin:…`, or a word without `/` and
    suffix, is a name that the factory knows. A config file is code: it is executed."""
    checkpoint: str | None = None
    """The supernet's weights, given like `config`."""

    @field_validator("config", "checkpoint")
    @classmethod
    def _resolve(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None or not _is_path(value):
            return value
        path = (_folder(info, "supernet") / Path(value).expanduser()).resolve()
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
    """The grid, strictly increasing, each `0 <= ratio < 1`. The latency model is fitted on all of it."""
    layers: Annotated[
        dict[str, tuple[Number, ...]], Field(description="one ratio fixes a layer, as s1 = 0.8; several are its choice")
    ] = Field(default_factory=dict)
    """Layers that may take only some of `ratios`, by name: `s1`, `s3.2`, or `s3` for each layer of stage 3. One ratio
    fixes a layer."""

    @field_validator("ratios")
    @classmethod
    def _check(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        _as_value_error(lambda: _space((2,), value))
        return value

    @field_validator("layers", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        for name in value:
            if not LAYER.fullmatch(name):
                raise ValueError(
                    f"{name!r} is no layer: write s1, or s3.2 for the second one of stage 3, or s3 for all"
                )
        return {name: one if isinstance(one, list | tuple) else [one] for name, one in value.items()}

    @model_validator(mode="after")
    def _among_ratios(self) -> SpaceSpec:
        grid = [ratio(value) for value in self.ratios]
        for name, chosen in self.layers.items():
            for value in chosen:
                if value not in self.ratios:
                    allowed = ", ".join(f"{one:f}" for one in grid)
                    raise ValueError(f"layers.{name}: {value:g} is not among the ratios {allowed}")
            if not chosen or list(chosen) != sorted(set(chosen)):
                raise ValueError(f"layers.{name}: its ratios must increase strictly, got {list(chosen)}")
        return self

    def of(self, depths: Sequence[int]) -> SparsitySpace:
        """All of `ratios` in every layer of a backbone of these depths; `restriction` narrows it."""
        return _space(tuple(depths), self.ratios)

    def restriction(self, space: SparsitySpace) -> Restriction:
        """The ratios that each layer of such a space may take.

        Raises:
            UserError: if the backbone has no such layer, or no configuration is left.
        """
        return Restriction.of(space, {name: tuple(map(ratio, chosen)) for name, chosen in self.layers.items()})


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
    """Nor one below this; none by default, and where a study says `"none"`."""
    error_limit: Annotated[Number, Field(gt=0)] | None = None
    """Mean error of the latency model (a fraction) from which on it is not trusted: more is measured, and if that does
    not help, every candidate. By default 0.01 where a GPU replays graphs, 0.04 where it runs eagerly, 0.05 on CPUs."""

    @field_validator("max", "min", mode="before")
    @classmethod
    def _check(cls, value: Any, info: ValidationInfo) -> Any:
        return None if value is None or (value == "none" and info.field_name == "min") else parse_limit(value)

    @model_validator(mode="after")
    def _ordered(self) -> LatencySpec:
        if self.min is not None and self.min.is_share == self.max.is_share and self.min.value > self.max.value:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class AccuracySpec(_Table):
    """`[accuracy]`: what is maximised, and on how many images."""

    metric: Annotated[
        str, Field(min_length=1, description='one of the evaluator\'s metrics, or several as ["bbox_mAP", "segm_mAP"]')
    ] = "bbox_mAP"
    """One of the evaluator's metrics, or a list of them: then their mean is maximised. Kept as `bbox_mAP+segm_mAP`."""
    also: Annotated[tuple[MetricName, ...], Field(description='metrics to keep beside it, as ["segm_mAP"]')] = ()
    """Metrics to compute and keep beside it. A detector's masks are computed where one of theirs is asked for."""
    images: Images = None
    """The first so many images judge a trial; all of them by default, and for `"all"`."""
    confirm_images: Images = None
    """The first so many judge the front in the end; all of them by default, and for `"all"`."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of all metrics that are asked for."""
        return tuple(dict.fromkeys((*parts(self.metric), *self.also)))

    @field_validator("metric", mode="before")
    @classmethod
    def _joined(cls, value: Any) -> Any:
        return joined(value) if isinstance(value, list | tuple) else value

    @field_validator("images", "confirm_images", mode="before")
    @classmethod
    def _all(cls, value: Any) -> Any:
        return None if value == "all" else value


class SearchSpec(_Table):
    """`[search]`: how long and how."""

    sampler: SamplerName = "surrogate"
    trials: Count = 100
    """Finished trials in total, those of earlier runs included."""
    population: Annotated[int, Field(strict=True, ge=2)] = 20
    """Trials of a generation of `nsga2`. Small ones find more when trials are few."""
    confirm: Count = 12
    """At most so many configurations of the front are measured and evaluated again in the end."""
    seed: Annotated[int, Field(strict=True, ge=0)] = 0
    workers: Count = 1
    """Processes that evaluate at once on this machine, a GPU each where there are several. Keep them far fewer than the
    population: a trial that is finished late misses its generation."""
    time_limit: Annotated[float, Field(description='seconds, or a text like "45 min" or "8h"')] | None = None
    """Seconds after which a run starts no further trial; then it confirms what it has, which takes its own time. A
    number is seconds, a text like `"45 min"` or `"8h"` says its unit. None by default, and for `"none"`."""

    @field_validator("time_limit", mode="before")
    @classmethod
    def _seconds(cls, value: Any) -> Any:
        return None if value is None or value == "none" else parse_duration(value)


class StorageSpec(_Table):
    """`[storage]`: where results go; relative paths here start in the folder the command runs in."""

    directory: str | None = None
    """Folder for database, finetune config and report; `runs/<name>` by default, and `--out` overrules it."""
    url: str | None = None
    """Another database, as SQLAlchemy writes it: `sqlite:///trials.db`, `postgresql+psycopg://user@host/name`.
    `${NAME}` in it is an environment variable, so that no password need stand in a file."""

    @field_validator("url")
    @classmethod
    def _check(cls, value: str | None) -> str | None:
        if value is not None:
            expanded(value)
        return value


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

    _settings: Settings = PrivateAttr(default_factory=lambda: Settings("", Path()))

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> StudySpec:
        """Read a study file, those that it extends, and what overrules them.

        Args:
            path: the file; where there is none, one of that name that comes with the package (`studies/digits.toml`).
            overrides: `key.sub=value` each, the value written as in TOML; what TOML cannot read is a text.

        Raises:
            UserError: if a file is missing or is no TOML, or a key or value is wrong; names file, key and value.
        """
        settings = read_settings(Path(path), overrides)
        try:
            spec = cls.model_validate(settings.tables, context=settings)
        except ValidationError as error:
            raise validation_error(error, cls, settings) from None
        spec._settings = settings
        return spec

    @property
    def settings(self) -> Settings:
        """What was read, and where each value stands; without any values if the study was not read from a file."""
        return self._settings

    def folder(self, out: str | Path | None = None) -> Path:
        """The folder of this study's results; `out` overrules the study file."""
        return Path(out or self.storage.directory or Path("runs") / self.name)

    def url(self, out: str | Path | None = None) -> str:
        """The database that keeps this study, with what variables of the environment stand for: not to be shown."""
        return expanded(self.storage.url) if self.storage.url else f"sqlite:///{self.folder(out) / 'study.db'}"


def _is_path(value: str) -> bool:
    """`builtin:digits` and `builtin` are names, `weights.pth` and `runs/adapt` are paths."""
    return re.match(r"\w{2,}:", value) is None and bool(re.search(r"[/\\]", value) or Path(value).suffix)


def _folder(info: ValidationInfo, table: str) -> Path:
    """Where a relative path starts: the folder of the file that names it."""
    if not isinstance(info.context, Settings):
        return Path()
    source = info.context.sources.get((table, info.field_name or ""))
    return source.folder if source else info.context.folder


def _space(depths: tuple[int, ...], ratios: Sequence[float]) -> SparsitySpace:
    return SparsitySpace(depths, tuple(ratios))  # type: ignore[arg-type]  # it makes its ratios exact


def _as_value_error(check: Any) -> None:
    """pydantic gathers ValueErrors and adds key and value to them."""
    try:
        check()
    except UserError as error:
        raise ValueError(str(error)) from None
