"""One search from the study file to its results. Whatever is in the database already is not paid for again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from sparsevit.console import console, progress
from sparsevit.errors import UserError
from sparsevit.latency import timing
from sparsevit.search.bounds import resolve
from sparsevit.search.candidates import Candidates, find_candidates, require
from sparsevit.search.duration import duration_text
from sparsevit.search.export import export_best
from sparsevit.search.factory import Supernet, open_supernet
from sparsevit.search.latency import known_latencies, paid_latency
from sparsevit.search.ledger import Ledger
from sparsevit.search.load import assemble
from sparsevit.search.objective import Objective, PaidAccuracy, PaidLatency
from sparsevit.search.record import HeldOutRecord, StudyRecord, Wishes, read_record, refuse_other
from sparsevit.search.results import Bounds, StudyResults
from sparsevit.search.samplers import check_sampler, make_sampler
from sparsevit.search.score import missing, scored
from sparsevit.search.selection import to_confirm
from sparsevit.search.storage import GRACE_S, check_folder, check_storage, storage_at
from sparsevit.search.study import find_study, fingerprint, open_study, provenance
from sparsevit.search.worker import fail_dead_trials

if TYPE_CHECKING:
    from sparsevit.latency.model import LatencyModel
    from sparsevit.search.evaluator import Evaluator
    from sparsevit.search.samplers.base import CandidateSampler
    from sparsevit.search.spec import StudySpec

Finish = Callable[[Study, StudyResults, "Evaluator"], None]
"""What else is done with a study that is confirmed."""


def search(
    spec: StudySpec, *, trials: int | None = None, out: str | Path | None = None, then: Finish | None = None
) -> StudyResults:
    """Run a study until so many trials are finished, or go on with it; confirm its front and export its best.

    A run that is interrupted loses at most the evaluation in flight.

    Args:
        spec: the study.
        trials: finished trials in total, in place of the study file's number.
        out: folder of the results, in place of the study file's.
        then: called with the results once the front is confirmed, while study and supernet are still open.

    Raises:
        UserError: for whatever the user can set right; nothing half-written is left.
    """
    asked = trials or spec.search.trials
    folder, url = spec.folder(out), spec.url(out)
    check_folder(folder)
    check_storage(url)
    check_sampler(spec.search.sampler)
    supernet = open_supernet(spec)
    with _quiet_optuna(), storage_at(url) as storage:
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
        meter = paid_latency(supernet, ledger, model) if record.measured else None
        sampler = _sampler(spec, candidates, bounds, ledger, meter)
        study = open_study(storage, spec.name, record, wishes, sampler)
        fail_dead_trials(study, grace_s=GRACE_S)
        objective = Objective(sampler, judge, record.metric, record.images, bounds, meter)
        _run_trials(study, objective, asked, candidates, spec.search.time_limit)
        _confirm(spec, supernet, ledger, judge, assemble(study, record, storage), model)
        results = assemble(study, record, storage)
        export_best(supernet.evaluator, results, folder)
        if then is not None:
            then(study, results, supernet.evaluator)
    return results


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
    for name in missing(accuracy.metrics, spec.accuracy.metric):
        raise UserError(
            f"accuracy.metric = {name!r} is not among what {spec.supernet.evaluator} gives: "
            f"{', '.join(sorted(accuracy.metrics))}"
        )
    return tuple(scored(accuracy.metrics, spec.accuracy.metric))


def _sampler(
    spec: StudySpec, candidates: Candidates, bounds: Bounds, ledger: Ledger, meter: PaidLatency | None
) -> CandidateSampler:
    """The study's sampler; with a meter, one that proposes only what is within the bounds as measured."""
    name, population, seed = spec.search.sampler, spec.search.population, spec.search.seed
    if meter is None:
        return make_sampler(name, candidates, population=population, seed=seed)

    def accept(row: int) -> bool:
        return bounds.contains(meter(candidates.sparsity(row)).median_ms)

    measured = ledger.all_latencies()
    outside = [sparsity for sparsity, found in measured.items() if not bounds.contains(found.median_ms)]
    refused = [candidates.row(one) for one in outside if one in candidates.space]
    known = [row for row in refused if row >= 0]
    return make_sampler(name, candidates, population=population, seed=seed, accept=accept, refused=known)


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


def _run_trials(study: Study, objective: Objective, asked: int, candidates: Candidates, seconds: float | None) -> None:
    """Finish trials until there are as many as asked for, no configuration is left, or so many seconds are over."""
    done = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
    if done:
        console.print(f"study {study.study_name}: goes on after {done} finished trials; nothing is evaluated again")
    free = objective.sampler.free(study)
    if done + free < asked:
        console.print(
            f"note: only {len(candidates)} configurations within the bounds keep different windows, "
            f"so the search ends after {done + free} trials"
        )
    todo = min(asked - done, free)
    if todo <= 0:
        return
    with progress("search", todo) as step:
        study.optimize(objective, n_trials=todo, timeout=seconds, callbacks=[_note_best(study, objective, step)])
    finished = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
    if seconds is not None and finished < done + todo:
        console.print(
            f"search.time_limit of {duration_text(seconds)} is over after {finished} of {done + todo} trials; the same "
            "again goes on"
        )


def _note_best(study: Study, objective: Objective, step: Callable[..., None]) -> Callable[[Study, FrozenTrial], None]:
    """A callback that moves the progress bar, with the best trial so far behind it."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    best = max(((one.values[0], -one.values[1]) for one in done), default=None)

    def callback(_: Study, trial: FrozenTrial) -> None:
        nonlocal best
        if trial.state != TrialState.COMPLETE:
            return
        found = trial.values[0], -trial.values[1]
        best = found if best is None else max(best, found)
        step(note=f"best {objective.metric} {best[0]:.3f} at {-best[1]:.4g} ms")

    return callback


def _confirm(
    spec: StudySpec, supernet: Supernet, ledger: Ledger, judge: PaidAccuracy, results: StudyResults, model: LatencyModel
) -> None:
    """Evaluate the front, or as much of it as was asked for, on the images that confirm, and measure it."""
    images = spec.accuracy.confirm_images
    chosen = to_confirm(results.front, results.metric, spec.search.confirm)
    known = ledger.accuracies([one.sparsity for one in chosen], images)
    unpaid = [one for one, found in zip(chosen, known, strict=True) if found is None]
    if unpaid:
        with progress("confirm accuracy", len(unpaid)) as step:
            for one in unpaid:
                judge(one.sparsity, images)
                step()
    timed = ledger.latencies([one.sparsity for one in chosen])
    untimed = [one.sparsity for one, found in zip(chosen, timed, strict=True) if found is None]
    if untimed:
        with progress("confirm latency", timing.PROGRESS) as step:
            # What the device has drifted since the model was fitted is not these configurations' own.
            reference_ms = model.dense.median_ms
            found = timing.measure(supernet.backbone, supernet.target, untimed, reference_ms=reference_ms, step=step)
        for sparsity, timed_now in zip(untimed, found, strict=True):
            ledger.put_latency(sparsity, timed_now)


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Optuna's own lines would break the progress bar; what they say is in the database."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
