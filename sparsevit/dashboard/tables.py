"""The front as a table: values first, then Markdown or CSV of them."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparsevit.dashboard.text import accuracy_text, figure_of, measured_text, metric_label, ms_text, shown_metrics
from sparsevit.search.results import Measured, Reference, StudyResults, TrialResult
from sparsevit.sparsity import Sparsity

UNCONFIRMED = "*"
FOOTNOTE = f"{UNCONFIRMED} not confirmed: accuracy on the search images alone"


@dataclass(frozen=True)
class Row:
    """One configuration. `accuracy` is of the confirmation images if `confirmed`, else of the search images."""

    label: str
    sparsity: Sparsity
    accuracy: Mapping[str, float]
    confirmed: bool
    predicted_ms: float
    measured: Measured | None

    def cells(self, metrics: Sequence[str]) -> list[str]:
        """Texts under `columns`; an accuracy that was not confirmed carries a mark."""
        mark = "" if self.confirmed else UNCONFIRMED
        figures = [figure_of(self.accuracy, metric) for metric in metrics]
        return [
            str(self.sparsity),
            *(accuracy_text(value) + (mark if value is not None else "") for value in figures),
            ms_text(self.predicted_ms),
            measured_text(self.measured),
        ]


def columns(results: StudyResults) -> list[str]:
    """The titles over `Row.cells`."""
    metrics = [metric_label(metric) for metric in shown_metrics(results.metric, results.metrics)]
    return ["configuration", *metrics, "predicted ms", "measured ms [interval]"]


def trial_row(trial: TrialResult, label: str = "") -> Row:
    """A trial as a row, with the confirmed accuracy where there is one."""
    confirmed = trial.confirmed is not None
    accuracy = trial.confirmed if trial.confirmed is not None else trial.accuracy
    return Row(
        label or f"trial {trial.number}", trial.sparsity, accuracy, confirmed, trial.predicted_ms, trial.measured
    )


def reference_row(reference: Reference) -> Row:
    """A reference as a row; references are evaluated on the confirmation images."""
    return Row(
        reference.label, reference.sparsity, reference.accuracy or {}, True, reference.predicted_ms, reference.measured
    )


def front_rows(results: StudyResults) -> list[Row]:
    """The trials of the front, fastest first by prediction."""
    return [trial_row(trial) for trial in sorted(results.front, key=lambda trial: trial.predicted_ms)]


def dense_row(results: StudyResults) -> Row | None:
    """The dense subnet among the references."""
    return next((reference_row(one) for one in results.references if one.sparsity.is_dense), None)


def to_markdown(results: StudyResults) -> str:
    """The front as a Markdown table under the study's name and target."""
    titles = columns(results)
    rows = front_rows(results)
    lines = [
        f"### {plain(results.name)}",
        "",
        f"Latencies are of {plain(results.target)}.",
        "",
        _line(titles),
        _line(["---"] + ["---:"] * (len(titles) - 1)),
        *(_line(row.cells(shown_metrics(results.metric, results.metrics))) for row in rows),
    ]
    if not rows:
        lines += ["", "No trial within the bounds yet."]
    elif not all(row.confirmed for row in rows):
        lines += ["", plain(FOOTNOTE)]
    return "\n".join(lines) + "\n"


def to_csv(results: StudyResults) -> str:
    """The front as CSV with every metric and unrounded figures, a column each; what is not known is empty."""
    metrics = [results.metric, *(metric for metric in results.metrics if metric != results.metric)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    latencies = ["predicted_ms", "measured_ms", "measured_low_ms", "measured_high_ms"]
    writer.writerow(["trial", "configuration", *metrics, "confirmed", *latencies])
    for trial in sorted(results.front, key=lambda one: one.predicted_ms):
        row, measured = trial_row(trial), trial.measured
        writer.writerow(
            [
                trial.number,
                row.sparsity,
                *(row.accuracy.get(metric, "") for metric in metrics),
                str(row.confirmed).lower(),
                row.predicted_ms,
                *((measured.median_ms, measured.low_ms, measured.high_ms) if measured else ("", "", "")),
            ]
        )
    return text.getvalue()


def _line(cells: Sequence[str]) -> str:
    escaped = (re.sub(r"([*|])", r"\\\1", cell) for cell in cells)
    return f"| {' | '.join(escaped)} |"


def plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", " ".join(text.split()))
