"""Hands a configuration found by a study back to the user's own training, with where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sparsevit.errors import UserError
from sparsevit.folders import check_folder
from sparsevit.search.results import Bounds, StudyResults, TrialResult

if TYPE_CHECKING:
    from sparsevit.search.bounds import Limit
    from sparsevit.search.evaluator import Evaluator
    from sparsevit.sparsity import Sparsity

FINETUNE = "finetune.py"
"""The config that a search leaves in its folder."""


def export(evaluator: Evaluator, results: StudyResults, sparsity: Sparsity, path: Path) -> Path:
    """Write a finetune config for `sparsity` to `path` and return it.

    Raises:
        UserError: if the evaluator cannot export, or the folder cannot be written to.
    """
    from sparsevit.search.evaluator import Exporter

    if not isinstance(evaluator, Exporter):
        raise UserError("this study's evaluator has no export: take the sparsity as it is printed")
    check_folder(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    return evaluator.export(sparsity, path, provenance_lines(results, sparsity))


def export_best(evaluator: Evaluator, results: StudyResults, folder: Path) -> Path | None:
    """Export a study's best trial to its folder; `None` if it has none, or its evaluator cannot."""
    from sparsevit.search.evaluator import Exporter

    if results.best is None or not isinstance(evaluator, Exporter):
        return None
    return export(evaluator, results, results.best.sparsity, folder / FINETUNE)


def choose(results: StudyResults, *, trial: int | None = None, max_ms: float | None = None) -> TrialResult:
    """The trial of that number, else the best known one of at most `max_ms`, else the study's best.

    Under a new bound confirmed trials come first; where none of them is within it, the others, as the search saw them.

    Raises:
        UserError: if there is none.
    """
    from sparsevit.search.selection import best_within

    if trial is not None:
        found = next((one for one in results.trials if one.number == trial), None)
        if found is None:
            raise UserError(f"study {results.name!r} has no finished trial {trial}: sparsevit status lists its front")
        return found
    if max_ms is None:
        if results.best is None:
            raise UserError(f"study {results.name!r} has no trial within its bounds yet: search on with more trials")
        return results.best
    bounds = Bounds(0.0, max_ms)
    confirmed = [one for one in results.trials if one.confirmed is not None]
    found = best_within(confirmed, results.metric, bounds) or best_within(
        [one for one in results.trials if one.measured is None], results.metric, bounds
    )
    if found is None:
        fastest = min((one.predicted_ms for one in results.trials), default=None)
        known = "it has none yet" if fastest is None else f"its fastest takes {fastest:.4g} ms (predicted)"
        raise UserError(f"no trial of study {results.name!r} takes at most {max_ms:.4g} ms: {known}")
    return found


def bound_ms(results: StudyResults, limit: Limit) -> float:
    """A bound in ms: a share is one of the dense latency, the measured one where it is known."""
    dense = next(one for one in results.references if one.sparsity.is_dense)
    return limit.ms(dense.measured.median_ms if dense.measured is not None else dense.predicted_ms)


def better_unconfirmed(results: StudyResults, chosen: TrialResult, max_ms: float) -> TrialResult | None:
    """The best trial of at most `max_ms` that was never confirmed, if the search saw it above the confirmed choice."""
    from sparsevit.search.selection import best_within

    if chosen.confirmed is None:
        return None
    others = [one for one in results.trials if one.measured is None]
    best = best_within(others, results.metric, Bounds(0.0, max_ms))
    return best if best is not None and best.accuracy[results.metric] > chosen.accuracy[results.metric] else None


def provenance_lines(results: StudyResults, sparsity: Sparsity) -> list[str]:
    """Where a configuration comes from, a line each: study, trial, figures, target, versions."""
    trial = next((one for one in results.trials if one.sparsity == sparsity), None)
    lines = [f"study: {results.name}", f"sparsity: {sparsity}", f"target: {results.target}"]
    if trial is None:
        lines.append("trial: none, the sparsity was given by hand")
    else:
        lines += [
            f"trial: {trial.number} of {len(results.trials)}",
            f"accuracy ({_images(results.images_search)}): {_metrics(trial.accuracy)}",
        ]
        if trial.confirmed is not None:
            lines.append(f"accuracy, confirmed ({_images(results.images_confirm)}): {_metrics(trial.confirmed)}")
        lines.append(f"latency, predicted: {trial.predicted_ms:.4g} ms")
        if trial.measured is not None:
            one = trial.measured
            lines.append(f"latency, measured: {one.median_ms:.4g} ms ({one.low_ms:.4g} to {one.high_ms:.4g})")
    return lines + [f"{key}: {value}" for key, value in results.provenance.items() if key != "target"]


def _images(count: int | None) -> str:
    return "all images" if count is None else f"first {count} images"


def _metrics(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
