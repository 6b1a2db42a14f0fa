"""Opening a study to work on, or creating it: one process measures, the others find what it has paid for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
from optuna.storages import RDBStorage
from optuna.study import Study

from sparsevit.console import console, progress
from sparsevit.errors import UserError
from sparsevit.folders import check_folder
from sparsevit.search.bounds import resolve
from sparsevit.search.candidates import Candidates, find_candidates, require
from sparsevit.search.factory import Supernet, open_supernet
from sparsevit.search.gate import Gate
from sparsevit.search.latency import known_latencies, paid_latency
from sparsevit.search.ledger import Ledger
from sparsevit.search.objective import Objective, PaidAccuracy
from sparsevit.search.patience import patiently
from sparsevit.search.record import HeldOutRecord, StudyRecord, Wishes, read_record, refuse_other
from sparsevit.search.results import Bounds
from sparsevit.search.samplers import check_sampler, make_sampler
from sparsevit.search.score import missing, scored
from sparsevit.search.storage import alone, check_storage, storage_at
from sparsevit.search.study import find_study, fingerprint, open_study, provenance

if TYPE_CHECKING:
    from sparsevit.latency.model import LatencyModel
    from sparsevit.search.samplers.base import CandidateSampler
    from sparsevit.search.spec import StudySpec


@dataclass(frozen=True)
class Prepared:
    """A study that workers may work on: opened or created, with all they need.

    Attributes:
        spec: what was asked for.
        storage: its database.
        supernet: opened.
        ledger: of its supernet.
        judge: pays for accuracies.
        model: its latency model.
        record: what is stored with it.
        candidates: the configurations within its bounds.
        objective: fills trials in.
        study: with its sampler.
        asked: trials that are to be finished in the end.
    """

    spec: StudySpec
    storage: RDBStorage
    supernet: Supernet
    ledger: Ledger
    judge: PaidAccuracy
    model: LatencyModel
    record: StudyRecord
    candidates: Candidates
    objective: Objective
    study: Study
    asked: int


@contextmanager
def prepared(
    spec: StudySpec, trials: int | None, out: str | Path | None, *, waiting: bool = False
) -> Iterator[Prepared]:
    """Open a study, or create it, which one process does at a time: measuring and the dense accuracy are paid once.

    A database that goes away is waited for once it was reached; with `waiting` before that too.
    """
    asked, url = trials or spec.search.trials, spec.url(out)
    check_folder(spec.folder(out))
    if not waiting:
        check_storage(url)  # before the supernet is built, which takes a while
    check_sampler(spec.search.sampler)
    supernet = open_supernet(spec)
    with _quiet_optuna(), storage_at(url, waiting=waiting) as storage:
        yield patiently(lambda: _prepare_alone(spec, storage, supernet, asked))


def _prepare_alone(spec: StudySpec, storage: RDBStorage, supernet: Supernet, asked: int) -> Prepared:
    with alone(storage.engine, lambda: console.print("waiting for another process that prepares a study here")):
        return _prepare(spec, storage, supernet, asked)


def _prepare(spec: StudySpec, storage: RDBStorage, supernet: Supernet, asked: int) -> Prepared:
    ledger = Ledger(storage.engine, supernet.subject)
    settings = fingerprint(spec, supernet)
    record = _existing(storage, spec.name, settings)
    judge = PaidAccuracy(supernet.evaluator, ledger)
    model, trusted = known_latencies(supernet, ledger, spec.latency.error_limit)
    bounds = record.bounds if record else resolve(spec.latency.max, spec.latency.min, model.dense.median_ms)
    candidates = find_candidates(
        supernet.space, supernet.subject.windows, model.predict_levels, bounds, supernet.restriction
    )
    require(candidates, bounds, str(supernet.target))
    metrics = _dense_metrics(spec, supernet, ledger, judge)
    record = record or _record(spec, supernet, settings, bounds, model, trusted, metrics)
    wishes = Wishes(trials=asked, confirm_images=spec.accuracy.confirm_images, seed=spec.search.seed)
    gate = Gate(candidates, bounds, paid_latency(supernet, ledger, model) if record.measured else None)
    sampler = _sampler(spec, candidates, bounds, ledger, gate)
    study = open_study(storage, spec.name, record, wishes, sampler)
    objective = Objective(sampler, ledger.subject, record.metric, bounds, gate)
    return Prepared(spec, storage, supernet, ledger, judge, model, record, candidates, objective, study, asked)


def _existing(storage: RDBStorage, name: str, settings: dict[str, str]) -> StudyRecord | None:
    """The record of a study that is to go on, once its settings are seen to be the same."""
    study = find_study(storage, name)
    record = None if study is None else read_record(study)
    if record is not None:
        refuse_other(name, record.fingerprint, settings)
    return record


def _dense_metrics(spec: StudySpec, supernet: Supernet, ledger: Ledger, judge: PaidAccuracy) -> tuple[str, ...]:
    """Names of the evaluator's metrics; the dense subnet's, on the images that confirm, are in the ledger then."""
    dense, images = supernet.space.dense, spec.accuracy.confirm_images
    if ledger.accuracy(dense, images) is not None:
        accuracy = judge(dense, images)
    elif images is None:  # how many that are only the evaluator knows
        console.print("dense accuracy: on all images")
        accuracy = judge(dense, images)
    else:
        with progress("dense accuracy", images) as step:
            accuracy = judge(dense, images, step)
    wanted = {"metric": missing(accuracy.metrics, spec.accuracy.metric)}
    wanted["also"] = [name for name in spec.accuracy.also if name not in accuracy.metrics]
    for key, name in ((key, name) for key, names in wanted.items() for name in names):
        raise UserError(
            f"accuracy.{key} = {name!r} is not among what {spec.supernet.evaluator} gives: "
            f"{', '.join(sorted(accuracy.metrics))}"
        )
    return tuple(scored(accuracy.metrics, spec.accuracy.metric))


def _sampler(spec: StudySpec, candidates: Candidates, bounds: Bounds, ledger: Ledger, gate: Gate) -> CandidateSampler:
    """The study's sampler, which proposes only what the gate lets through."""
    measured = ledger.all_latencies() if gate.meter else {}
    gate.know(measured)
    outside = [sparsity for sparsity, found in measured.items() if not bounds.contains(found.median_ms)]
    refused = [candidates.row(one) for one in outside if one in candidates.space]
    return make_sampler(
        spec.search.sampler,
        candidates,
        population=spec.search.population,
        seed=spec.search.seed,
        accept=gate,
        refused=[row for row in refused if row >= 0],
    )


def _record(
    spec: StudySpec,
    supernet: Supernet,
    settings: dict[str, str],
    bounds: Bounds,
    model: LatencyModel,
    trusted: bool,
    metrics: tuple[str, ...],
) -> StudyRecord:
    subject = supernet.subject
    return StudyRecord(
        fingerprint=settings,
        depths=supernet.space.depths,
        ratios=tuple(f"{value:f}" for value in supernet.space.grid),
        size=subject.size,
        windows=subject.windows,
        evaluator=subject.evaluator,
        target=subject.target,
        environment=subject.environment,
        backbone=subject.backbone,
        metric=spec.accuracy.metric,
        metrics=metrics,
        images=spec.accuracy.images,
        min_ms=bounds.min_ms,
        max_ms=bounds.max_ms,
        dense_ms=model.predict(supernet.space.dense),
        measured=not trusted,
        held_out=tuple(
            HeldOutRecord(sparsity=str(one.sparsity), predicted_ms=one.predicted_ms, measured_ms=one.measured_ms)
            for one in model.held_out
        ),
        provenance=provenance(spec, supernet),
    )


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Optuna's own lines would break the progress bar; what they say is in the database."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
