"""What is stored with a study: settings that must not change, and all it takes to read it without its supernet."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from sparsevit.errors import UserError
from sparsevit.search.ledger import Subject
from sparsevit.search.results import Bounds, HeldOut
from sparsevit.sparsity import Sparsity, SparsitySpace

if TYPE_CHECKING:
    from optuna.study import Study

RECORD = "sparsevit"
"""User attribute of a study that holds its record."""

WISHES = "sparsevit:wishes"
"""User attribute of a study that holds its latest wishes."""


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True)


class HeldOutRecord(_Stored):
    sparsity: str
    predicted_ms: float
    measured_ms: float


class StudyRecord(_Stored):
    """Written once, when the study is made.

    Attributes:
        fingerprint: what must be the same on resume, in the words of the study file.
        depths: blocks of each stage.
        ratios: the grid, as texts.
        size: height and width of an image, pixels.
        windows: windows of each stage.
        evaluator: hash, see `Subject`; likewise `environment` and `backbone`.
        metric: what is maximised.
        metrics: all metrics that the evaluator gives.
        images: the first so many judge a trial; `None` for all.
        min_ms: lower bound as resolved, 0 for none.
        max_ms: upper bound as resolved.
        dense_ms: predicted latency of the dense subnet.
        measured: whether each candidate is measured, as the latency model is not to be trusted.
        held_out: checks of the latency model.
        provenance: for people: versions, device, supernet.
    """

    fingerprint: dict[str, str]
    depths: tuple[int, ...]
    ratios: tuple[str, ...]
    size: tuple[int, int]
    windows: tuple[int, ...]
    evaluator: str
    target: str
    environment: str
    backbone: str
    metric: str
    metrics: tuple[str, ...]
    images: int | None
    min_ms: float
    max_ms: float
    dense_ms: float
    measured: bool = False
    held_out: tuple[HeldOutRecord, ...]
    provenance: dict[str, str]

    @property
    def bounds(self) -> Bounds:
        return Bounds(self.min_ms, self.max_ms)

    @property
    def space(self) -> SparsitySpace:
        return SparsitySpace(self.depths, tuple(Decimal(value) for value in self.ratios))

    @property
    def subject(self) -> Subject:
        return Subject(self.size, self.windows, self.evaluator, self.target, self.environment, self.backbone)

    @property
    def checks(self) -> tuple[HeldOut, ...]:
        return tuple(HeldOut(Sparsity.parse(one.sparsity), one.predicted_ms, one.measured_ms) for one in self.held_out)


class Wishes(_Stored):
    """What may change from one run to the next.

    Attributes:
        trials: finished trials asked for in total.
        confirm_images: the first so many judge the front; `None` for all.
        seed: of the run that asked last.
    """

    trials: int
    confirm_images: int | None
    seed: int


def read_record(study: Study) -> StudyRecord | None:
    """The record of a study; `None` if its making was interrupted before that.

    Raises:
        UserError: if somebody else made the study, or another version of this package.
    """
    stored = study.user_attrs.get(RECORD)
    if stored is None:
        if study.get_trials(deepcopy=False):
            raise UserError(f"the study {study.study_name!r} was not made by sparsevit: give yours another name")
        return None
    try:
        return StudyRecord.model_validate(stored)
    except ValidationError:
        raise UserError(
            f"the study {study.study_name!r} was made by another version of sparsevit: give yours another name"
        ) from None


def read_wishes(study: Study) -> Wishes | None:
    stored = study.user_attrs.get(WISHES)
    return None if stored is None else Wishes.model_validate(stored)


def refuse_other(name: str, old: Mapping[str, str], new: Mapping[str, str]) -> None:
    """See that a study goes on under the settings it was made with.

    Raises:
        UserError: if not; names each key with its old and its new value.
    """
    keys = [key for key in {**old, **new} if old.get(key, "none") != new.get(key, "none")]
    if keys:
        changes = ", ".join(f"{key} {old.get(key, 'none')} -> {new.get(key, 'none')}" for key in keys)
        raise UserError(
            f"the study {name!r} exists with other settings: {changes} (stored -> asked); "
            "set them back, or give the new study another name"
        )
