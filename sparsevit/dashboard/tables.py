"""The front as a table: values first, then Markdown, CSV or Parquet of them."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparsevit.dashboard.text import accuracy_text, figure_of, measured_text, metric_label, ms_text, shown_metrics
from sparsevit.errors import MissingExtraError
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


def records(results: StudyResults) -> dict[str, list[str | int | float | bool | None]]:
    """The front by column, fastest first: every metric and unrounded figures; what is not known is None."""
    metrics = [results.metric, *(metric for metric in results.metrics if metric != results.metric)]
    trials = sorted(results.front, key=lambda one: one.predicted_ms)
    rows = [trial_row(trial) for trial in trials]
    timings = [row.measured for row in rows]
    return {
        "trial": [trial.number for trial in trials],
        "configuration": [str(row.sparsity) for row in rows],
        **{metric: [row.accuracy.get(metric) for row in rows] for metric in metrics},
        "confirmed": [row.confirmed for row in rows],
        "predicted_ms": [row.predicted_ms for row in rows],
        "measured_ms": [one.median_ms if one else None for one in timings],
        "measured_low_ms": [one.low_ms if one else None for one in timings],
        "measured_high_ms": [one.high_ms if one else None for one in timings],
    }


def to_csv(results: StudyResults) -> str:
    """`records` as CSV; what is not known is empty."""
    found = records(results)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(found)
    for row in zip(*found.values(), strict=True):
        writer.writerow(
            "" if value is None else str(value).lower() if value is True or value is False else value for value in row
        )
    return text.getvalue()


def to_parquet(results: StudyResults) -> bytes:
    """`records` as a Parquet file, with study, target and metric in its metadata.

    Raises:
        MissingExtraError: if pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise MissingExtraError("a Parquet file", "parquet") from None
    kinds = {"trial": pa.int64(), "configuration": pa.string(), "confirmed": pa.bool_()}
    about = {"study": results.name, "target": results.target, "metric": results.metric}
    found = records(results)
    schema = pa.schema([(name, kinds.get(name, pa.float64())) for name in found], metadata=about)
    stream = io.BytesIO()
    parquet.write_table(pa.table(found, schema=schema), stream)
    return stream.getvalue()


def _line(cells: Sequence[str]) -> str:
    escaped = (re.sub(r"([*|])", r"\\\1", cell) for cell in cells)
    return f"| {' | '.join(escaped)} |"


def plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", " ".join(text.split()))
