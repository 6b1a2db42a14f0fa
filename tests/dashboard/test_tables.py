from __future__ import annotations

import csv
import io
import sys
from dataclasses import replace
from decimal import Decimal

import pytest

from sparsevit.dashboard.tables import columns, dense_row, front_rows, records, to_csv, to_markdown, to_parquet
from sparsevit.dashboard.text import metric_label, ms_text, ratio_text
from sparsevit.errors import MissingExtraError
from sparsevit.search.results import StudyResults
from sparsevit.sparsity import Sparsity


def unconfirmed(results: StudyResults) -> StudyResults:
    """The fastest trial of the front was not confirmed."""
    first, *rest = results.front
    return replace(results, front=[replace(first, confirmed=None, measured=None), *rest])


def test_columns_are_the_command_lines(finished: StudyResults) -> None:
    titles = ["configuration", "bbox mAP", "mask mAP", "predicted ms", "measured ms [interval]"]
    assert columns(finished) == titles


def test_only_the_main_metrics_are_shown_and_csv_holds_all(finished: StudyResults) -> None:
    many = replace(finished, metric="bbox_mAP_50", metrics=["bbox_mAP", "bbox_mAP_50", "bbox_mAP_s", "segm_mAP"])
    assert columns(many)[1:4] == ["bbox mAP 50", "bbox mAP", "mask mAP"]
    assert to_csv(many).startswith("trial,configuration,bbox_mAP_50,bbox_mAP,bbox_mAP_s,segm_mAP,confirmed,")


def test_rows_hold_confirmed_figures_fastest_first(finished: StudyResults) -> None:
    rows = front_rows(finished)
    assert [row.predicted_ms for row in rows] == sorted(one.predicted_ms for one in finished.front)
    assert [row.accuracy for row in rows] == [one.confirmed for one in finished.front]
    assert not any("*" in cell for row in rows for cell in row.cells(finished.metrics))


def test_what_is_not_confirmed_is_marked(finished: StudyResults) -> None:
    results = unconfirmed(finished)
    cells = front_rows(results)[0].cells(results.metrics)
    assert cells[1] == f"{results.front[0].accuracy['bbox_mAP']:.3f}*"
    assert cells[-1] == "–"
    assert "not confirmed" in to_markdown(results)
    assert "not confirmed" not in to_markdown(finished)


def test_the_dense_row_is_the_reference_without_pruning(finished: StudyResults) -> None:
    row = dense_row(finished)
    assert row is not None
    assert row.sparsity.is_dense
    assert dense_row(replace(finished, references=finished.references[1:])) is None


def test_csv_reads_back(finished: StudyResults) -> None:
    results = unconfirmed(finished)
    rows = list(csv.DictReader(io.StringIO(to_csv(results))))
    assert len(rows) == 8
    assert [Sparsity.parse(row["configuration"]) for row in rows] == [one.sparsity for one in results.front]
    assert [row["confirmed"] for row in rows] == ["false"] + ["true"] * 7
    assert rows[0]["measured_ms"] == ""
    for row, trial in list(zip(rows, results.front, strict=True))[1:]:
        assert trial.confirmed is not None
        assert trial.measured is not None
        assert float(row["segm_mAP"]) == trial.confirmed["segm_mAP"]
        assert float(row["predicted_ms"]) == trial.predicted_ms
        assert float(row["measured_low_ms"]) == trial.measured.low_ms


def test_markdown_has_a_line_per_trial_and_names_the_target(finished: StudyResults) -> None:
    lines = to_markdown(finished).splitlines()
    assert sum(line.startswith("| 0") for line in lines) == 8
    assert any(finished.target in line for line in lines)
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1


def test_markdown_shows_names_as_they_are(finished: StudyResults) -> None:
    text = to_markdown(replace(finished, name="a|b\n<script>*x*"))
    assert "### a\\|b \\<script\\>\\*x\\*" in text


def test_an_empty_study_says_so(empty: StudyResults) -> None:
    assert "No trial within the bounds yet." in to_markdown(empty)
    assert len(to_csv(empty).splitlines()) == 1


@pytest.mark.parametrize(
    ("metric", "label"),
    [
        ("bbox_mAP", "bbox mAP"),
        ("segm_mAP", "mask mAP"),
        ("bbox_mAP_50", "bbox mAP 50"),
        ("top_1", "top 1"),
        ("segm", "segm"),
    ],
)
def test_metric_labels(metric: str, label: str) -> None:
    assert metric_label(metric) == label


def test_numbers_are_short() -> None:
    assert [ratio_text(Decimal(text)) for text in ("0", "0.3", "0.25")] == ["0", ".3", ".25"]
    assert [ms_text(value) for value in (4.712, 47.13, 471.26)] == ["4.71", "47.13", "471.3"]


class TestParquet:
    def test_it_holds_what_csv_holds_with_types(self, finished: StudyResults) -> None:
        parquet = pytest.importorskip("pyarrow.parquet")
        results = unconfirmed(finished)
        table = parquet.read_table(io.BytesIO(to_parquet(results)))
        assert table.to_pydict() == records(results)
        assert table.column_names == next(csv.reader(io.StringIO(to_csv(results))))
        kinds = {name: str(table.schema.field(name).type) for name in table.column_names}
        assert (kinds["trial"], kinds["configuration"], kinds["confirmed"]) == ("int64", "string", "bool")
        assert {kinds[name] for name in ("bbox_mAP", "segm_mAP", "predicted_ms", "measured_ms")} == {"double"}
        assert table.schema.metadata[b"study"] == b"digits"

    def test_an_empty_front_keeps_its_columns(self, empty: StudyResults) -> None:
        parquet = pytest.importorskip("pyarrow.parquet")
        table = parquet.read_table(io.BytesIO(to_parquet(empty)))
        assert table.num_rows == 0
        assert table.column_names == list(records(empty))

    def test_without_pyarrow_the_extra_is_named(self, finished: StudyResults, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(MissingExtraError, match=r"sparsevit\[parquet\]"):
            to_parquet(finished)
