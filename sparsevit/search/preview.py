"""What a search would do, as far as is known before it runs: its space, what is feasible, how long. Writes nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from sparsevit.errors import UserError
from sparsevit.latency import fitting
from sparsevit.latency.model import LatencyError, LatencyModel
from sparsevit.search.bounds import resolve
from sparsevit.search.candidates import find_candidates
from sparsevit.search.factory import Supernet, open_supernet
from sparsevit.search.ledger import Ledger, space_key
from sparsevit.search.record import read_record, refuse_other
from sparsevit.search.results import Bounds
from sparsevit.search.storage import check_storage, storage_at
from sparsevit.search.study import find_study, fingerprint

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

    from sparsevit.search.spec import StudySpec


@dataclass(frozen=True)
class Seconds:
    """How long one evaluation takes.

    Attributes:
        each: seconds, the median of those that are known.
        known: how many that is of.
        images: that those were of, where it had to be scaled from another number of images; 0 is all. Else `None`.
    """

    each: float
    known: int
    images: int | None = None


@dataclass(frozen=True)
class Work:
    """One part of a search: so many times so long; `None` where nobody knows how long.

    `most` is when it is stopped, in seconds; `None` for never.
    """

    name: str
    count: int
    seconds: Seconds | float | None
    most: float | None = None

    @property
    def total(self) -> float | None:
        each = self.seconds.each if isinstance(self.seconds, Seconds) else self.seconds
        if each is None or self.count == 0:
            return 0.0 if self.count == 0 else self.most
        return min(self.count * each, self.most or math.inf)


@dataclass(frozen=True)
class Preview:
    """A search that was not run.

    Attributes:
        target: resolved, as text.
        whole: configurations of the space.
        allowed: those that the study lets layers take.
        distinct: of these, how many differ in the windows they keep.
        feasible: of these, how many the latency model sees within the bounds; `None` without a model.
        bounds: in ms; `None` where they are shares and the dense latency is not known.
        dense_ms: dense latency; `None` without a model.
        error: of the latency model.
        finished: trials that are there already.
        work: what is left to do.
        stored: what the database says of the study, in words.
    """

    target: str
    whole: int
    allowed: int
    distinct: int
    feasible: int | None
    bounds: Bounds | None
    dense_ms: float | None
    error: LatencyError | None
    finished: int
    work: tuple[Work, ...]
    stored: str

    @property
    def duration(self) -> float | None:
        """Seconds altogether; `None` if any part is not known."""
        parts = [one.total for one in self.work]
        return None if None in parts else sum(one for one in parts if one is not None)


def preview(spec: StudySpec, *, out: str | Path | None = None) -> Preview:
    """What `search` would do. The supernet is opened; of the database only what is there is read.

    Raises:
        UserError: for whatever `search` would refuse before its first measurement.
    """
    url = spec.url(out)
    check_storage(url, writing=False)
    supernet = open_supernet(spec)
    with ExitStack() as stack:
        try:
            storage = stack.enter_context(storage_at(url, create=False))
        except UserError as error:  # it is not there yet
            known = _Known(stored=f"a new one, {str(error).split(': ')[0]}")
        else:
            known = _known(spec, supernet, storage)
    return _preview(spec, supernet, known)


@dataclass(frozen=True)
class _Known:
    stored: str
    model: LatencyModel | None = None
    bounds: Bounds | None = None
    finished: int = 0
    seconds: Mapping[int, Sequence[float]] | None = None
    dense: bool = False


def _known(spec: StudySpec, supernet: Supernet, storage: RDBStorage) -> _Known:
    from optuna.trial import TrialState

    ledger = Ledger(storage.engine, supernet.subject)
    study = find_study(storage, spec.name)
    record = None if study is None else read_record(study)
    if record is not None:
        refuse_other(spec.name, record.fingerprint, fingerprint(spec, supernet))
    finished = 0 if study is None else len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
    text = ledger.latency_model(space_key(supernet.space))
    try:
        model = None if text is None else LatencyModel.from_json(text)
    except UserError:
        model = None  # of another version: a search fits it again
    return _Known(
        stored=f"goes on after {finished} finished trials" if record else "a new one",
        model=model,
        bounds=record.bounds if record else None,
        finished=finished,
        seconds=ledger.evaluation_seconds(),
        dense=ledger.accuracy(supernet.space.dense, spec.accuracy.confirm_images) is not None,
    )


def _preview(spec: StudySpec, supernet: Supernet, known: _Known) -> Preview:
    model, bounds = known.model, known.bounds
    if bounds is None and model is not None:
        bounds = resolve(spec.latency.max, spec.latency.min, model.dense.median_ms)
    everything = Bounds(0.0, float("inf"))
    candidates = find_candidates(
        supernet.space,
        supernet.subject.windows,
        model.predict_levels if model else lambda levels: np.ones(len(levels)),
        bounds or everything,
        supernet.restriction,
    )
    feasible = len(candidates) if model else None
    left = max(0, spec.search.trials - known.finished)
    if feasible is not None:
        left = min(left, max(0, feasible - known.finished))
    seconds = known.seconds or {}
    judged = seconds_of(seconds, spec.accuracy.images)
    confirmed = seconds_of(seconds, spec.accuracy.confirm_images)
    work = (
        Work("latency model", 0 if model else 1, fitting.default_seconds(supernet.target)),
        Work("dense accuracy", 0 if known.dense else 1, confirmed),
        Work("trials", left, judged, spec.search.time_limit),
        Work("confirmed at most", min(spec.search.confirm, spec.search.trials), confirmed),
    )
    return Preview(
        target=str(supernet.target),
        whole=len(supernet.space),
        allowed=len(supernet.restriction),
        distinct=candidates.distinct,
        feasible=feasible,
        bounds=bounds,
        dense_ms=model.dense.median_ms if model else None,
        error=model.error if model else None,
        finished=known.finished,
        work=work,
        stored=known.stored,
    )


def seconds_of(known: Mapping[int, Sequence[float]], images: int | None) -> Seconds | None:
    """How long an evaluation on so many images takes: as it took before, else scaled from another number of images.

    Args:
        known: seconds of evaluations by number of images, 0 for all.
        images: `None` for all; how many those are is not known here, so that nothing can be scaled to them.
    """
    exact = known.get(images or 0)
    if exact:
        return Seconds(median(exact), len(exact))
    others = [count for count, times in known.items() if count and times]
    if not images or not others:
        return None
    nearest = min(others, key=lambda count: abs(np.log(count / images)))
    return Seconds(median(known[nearest]) * images / nearest, len(known[nearest]), nearest)
