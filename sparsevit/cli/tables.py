"""What `search` and `status` print about a study. Measured and predicted latencies stand in columns of their own."""

from __future__ import annotations

from collections.abc import Mapping

from rich.measure import Measurement
from rich.table import Table

from sparsevit.console import console
from sparsevit.dashboard.text import metric_label, ms_text
from sparsevit.search.confirmation import differences
from sparsevit.search.results import StudyResults, TrialResult


def print_dense(results: StudyResults) -> None:
    """The dense subnet's accuracy and latency."""
    dense = next((one for one in results.references if one.sparsity.is_dense), None)
    if dense is None:
        return
    latency = f"{dense.predicted_ms:.4g} ms predicted"
    if dense.measured is not None:
        latency = f"{dense.measured.median_ms:.4g} ms measured"
    accuracy = f"{_metrics(dense.accuracy)}, " if dense.accuracy else ""
    console.print(f"\ndense subnet: {accuracy}{latency} ({results.target})")


def print_latency_error(results: StudyResults) -> None:
    """How far the latency model was off on configurations that it was not fitted on."""
    errors = [abs(one.predicted_ms / one.measured_ms - 1) for one in results.held_out]
    if errors:
        console.print(
            f"latency model: {sum(errors) / len(errors):.1%} mean error, {max(errors):.1%} at most, "
            f"on {len(errors)} held-out configurations"
        )


def print_whole(table: Table) -> None:
    """A table at its full width. A terminal may wrap a line; no width is a reason to cut a configuration short."""
    table.width = Measurement.get(console, console.options.update(width=1000), table).maximum
    console.print(table, crop=False)


def print_front(results: StudyResults) -> None:
    """The Pareto table, fastest first. Accuracies are of the images that confirm, where there are any."""
    if not results.front:
        console.print("\nno trial within the bounds is finished yet")
        return
    names = [results.metric, *(name for name in ("bbox_mAP", "segm_mAP") if name != results.metric)]
    names = [name for name in names if name in results.metrics]
    console.print(f"\nPareto front of {len(results.trials)} trials")
    table = Table(box=None, pad_edge=False)
    for column in ("trial", "configuration"):
        table.add_column(column, no_wrap=True)
    for name in names:
        table.add_column(metric_label(name), justify="right", no_wrap=True)
    for column in ("predicted ms", "measured ms"):
        table.add_column(column, justify="right", no_wrap=True)
    confirmed = any(one.confirmed is not None for one in results.front)
    for one in results.front:
        figures = [f"{one.confirmed[name]:.4f}" if one.confirmed else "" for name in names]
        if not confirmed:
            figures = [f"{one.accuracy[name]:.4f}" for name in names]
        measured = ms_text(one.measured.median_ms) if one.measured else ""
        mark = "*" if results.best is not None and one.number == results.best.number else ""
        table.add_row(f"{one.number}{mark}", str(one.sparsity), *figures, ms_text(one.predicted_ms), measured)
    print_whole(table)
    images = results.images_confirm if confirmed else results.images_search
    rest = "; rows without figures were not chosen to be confirmed" if confirmed and not _all_confirmed(results) else ""
    console.print(f"accuracy on {'all images' if images is None else f'{images} images'}{rest}")


def print_differences(results: StudyResults) -> None:
    """Say what confirming the front has changed."""
    for line in differences(results):
        console.print(f"note: {line}")


def print_best(results: StudyResults) -> None:
    """The best configuration within the bounds."""
    low, high = results.bounds.min_ms, results.bounds.max_ms
    bound = f"{low:.4g} to {high:.4g} ms" if low else f"at most {high:.4g} ms"
    if results.best is None:
        console.print(f"\nbest within {bound}: none" + (", by measured latency" if results.front else ""))
        return
    console.print(f"\nbest within {bound}: {results.best.sparsity}  ({trial_figures(results.best)})")


def trial_figures(trial: TrialResult) -> str:
    """Accuracy and latency of a trial, confirmed where they are, and its number."""
    if trial.confirmed is not None and trial.measured is not None:
        return f"{_metrics(trial.confirmed)}, {trial.measured.median_ms:.4g} ms measured, trial {trial.number}"
    return f"{_metrics(trial.accuracy)}, {trial.predicted_ms:.4g} ms predicted, trial {trial.number}, not confirmed yet"


def _metrics(metrics: Mapping[str, float]) -> str:
    main = {name: value for name, value in metrics.items() if name in ("bbox_mAP", "segm_mAP")} or metrics
    return ", ".join(f"{metric_label(name)} {value:.4f}" for name, value in main.items())


def _all_confirmed(results: StudyResults) -> bool:
    return all(one.confirmed is not None for one in results.front)
