"""Reads a study back from its database alone: no supernet, no torch, nothing written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from sparsevit.errors import UserError
from sparsevit.latency.model import LatencyModel
from sparsevit.latency.results import Measured, Timing
from sparsevit.search.ledger import Ledger, space_key
from sparsevit.search.objective import OUTCOME
from sparsevit.search.record import StudyRecord, read_record, read_wishes
from sparsevit.search.results import Reference, Running, StudyResults, Taken, TrialResult
from sparsevit.search.score import scored
from sparsevit.search.selection import best_within, pareto_front
from sparsevit.search.spec import StudySpec
from sparsevit.search.storage import shown, storage_at
from sparsevit.search.study import find_study
from sparsevit.search.worker import WORKER


def load_results(study: StudySpec | str, name: str | None = None, *, out: str | Path | None = None) -> StudyResults:
    """Everything known about a study.

    Args:
        study: its study file, or the URL of its database.
        name: the study's name; needed with a URL that holds several.
        out: the folder of its results, if not the study file's.

    Raises:
        UserError: if there is no such database or study.
    """
    url = study if isinstance(study, str) else study.url(out)
    with storage_at(url, create=False) as storage:
        names = sorted(optuna.study.get_all_study_names(storage))
        listed = ", ".join(names) or "none"
        wanted = name or (study.name if isinstance(study, StudySpec) else names[0] if len(names) == 1 else None)
        if wanted is None:
            raise UserError(f"{shown(url)} holds {len(names)} studies: name one of {listed}")
        found = find_study(storage, wanted)
        record = None if found is None else read_record(found)
        if found is None or record is None:
            raise UserError(f"{shown(url)} holds no study {wanted!r}; there are: {listed}")
        return assemble(found, record, storage)


def assemble(study: Study, record: StudyRecord, storage: RDBStorage) -> StudyResults:
    """The results of an open study."""
    ledger = Ledger(storage.engine, record.subject)
    wishes = read_wishes(study)
    confirm_images = wishes.confirm_images if wishes else None
    finished = study.get_trials(deepcopy=False)
    complete = [one for one in finished if one.state == TrialState.COMPLETE and OUTCOME in one.user_attrs]
    trials = _trials(complete, record, ledger, confirm_images)
    front = pareto_front(trials, record.metric)
    model = _latency_model(record, ledger)
    return StudyResults(
        name=study.study_name,
        target=record.target,
        metric=record.metric,
        metrics=record.metrics,
        bounds=record.bounds,
        trials=trials,
        trials_asked=max(wishes.trials if wishes else 0, len(trials)),
        layer_names=record.space.layer_names,
        front=front,
        best=best_within(trials, record.metric, record.bounds),
        references=[_dense(record, ledger, confirm_images), *_uniform(record, ledger, confirm_images, model)],
        held_out=record.checks,
        running=[
            Running(one.number, one.datetime_start, one.user_attrs.get(WORKER, ""))
            for one in finished
            if one.state == TrialState.RUNNING
        ],
        timings=_timings(ledger, model),
        failed=sum(one.state == TrialState.FAIL for one in finished),
        infeasible_avoided=sum(int(one.user_attrs[OUTCOME]["infeasible"]) for one in complete),
        duplicates_avoided=sum(int(one.user_attrs[OUTCOME]["duplicate"]) for one in complete),
        images_search=record.images,
        images_confirm=confirm_images,
        provenance=record.provenance,
    )


def _trials(
    complete: Sequence[FrozenTrial], record: StudyRecord, ledger: Ledger, confirm_images: int | None
) -> list[TrialResult]:
    space, bounds = record.space, record.bounds
    sparsities = [space.decode([int(one.params[name]) for name in space.layer_names]) for one in complete]
    timings = ledger.latencies(sparsities)
    confirmed = ledger.accuracies(sparsities, confirm_images)
    results = []
    for one, sparsity, timing, accuracy in zip(complete, sparsities, timings, confirmed, strict=True):
        predicted_ms = one.user_attrs[OUTCOME].get("predicted_ms", one.values[1])
        results.append(
            TrialResult(
                number=one.number,
                sparsity=sparsity,
                accuracy=one.user_attrs[OUTCOME]["accuracy"],
                predicted_ms=predicted_ms,
                feasible=bounds.contains(one.values[1]),
                seconds=one.user_attrs[OUTCOME]["seconds"],
                started=one.datetime_start,
                worker=one.user_attrs.get(WORKER, ""),
                # A trial is confirmed as a whole: on all images that count and on the target.
                confirmed=scored(accuracy.metrics, record.metric) if accuracy and timing else None,
                measured=_measured(timing),
                searched_ms=one.values[1] if record.measured else None,
                infeasible=int(one.user_attrs[OUTCOME]["infeasible"]),
                duplicates=int(one.user_attrs[OUTCOME]["duplicate"]),
            )
        )
    return results


def _dense(record: StudyRecord, ledger: Ledger, confirm_images: int | None) -> Reference:
    dense = record.space.dense
    accuracy = ledger.accuracy(dense, confirm_images)
    return Reference(
        label="dense",
        sparsity=dense,
        predicted_ms=record.dense_ms,
        accuracy=scored(accuracy.metrics, record.metric) if accuracy else None,
        measured=_measured(ledger.latencies([dense])[0]),
    )


def _uniform(
    record: StudyRecord, ledger: Ledger, confirm_images: int | None, model: LatencyModel | None
) -> list[Reference]:
    """Uniform ratios that happen to be known as a reference must be: judged on all images that count, and timed."""
    if model is None:
        return []
    known = [(value, record.space.uniform(value)) for value in record.space.grid if value]
    sparsities = [sparsity for _, sparsity in known]
    figures = zip(known, ledger.accuracies(sparsities, confirm_images), ledger.latencies(sparsities), strict=True)
    return [
        Reference(
            f"uniform {value:.0%}",
            sparsity,
            model.predict(sparsity),
            scored(accuracy.metrics, record.metric),
            _measured(timing),
        )
        for (value, sparsity), accuracy, timing in figures
        if accuracy and timing
    ]


def _latency_model(record: StudyRecord, ledger: Ledger) -> LatencyModel | None:
    """The latency model of the study's target, if this version reads it."""
    text = ledger.latency_model(space_key(record.space))
    try:
        return None if text is None else LatencyModel.from_json(text)
    except UserError:
        return None


def _timings(ledger: Ledger, model: LatencyModel | None) -> list[Taken]:
    """All that was measured on the target, the latency model's own cells first."""
    if model is None:
        return []
    cells = [Taken(one.sparsity, one.timing, model.predict(one.sparsity), fitted=True) for one in model.cells]
    fitted = {one.sparsity for one in model.cells}
    return cells + [
        Taken(sparsity, timing, model.predict(sparsity), sparsity in fitted, at)
        for sparsity, timing, at in ledger.latency_history()
    ]


def _measured(timing: Timing | None) -> Measured | None:
    return Measured(timing.median_ms, timing.low_ms, timing.high_ms) if timing else None
