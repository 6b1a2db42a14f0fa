"""The view of trials, asked in plain SQL as people's own tools would."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from optuna.trial import create_trial

from sparsevit.errors import UserError
from sparsevit.search import storage as storage_module
from sparsevit.search.load import load_results
from sparsevit.search.run import search
from sparsevit.search.spec import StudySpec
from sparsevit.search.storage import open_storage
from sparsevit.search.study import find_study

Load = Callable[..., StudySpec]
URL = "sqlite:///runs/small/study.db"
COLUMNS = [
    "study", "trial", "state", "sparsity", "ratios", "metric", "accuracy", "metrics", "confirmed_accuracy",
    "confirmed_metrics", "predicted_ms", "measured_ms", "measured_low_ms", "measured_high_ms", "feasible", "min_ms",
    "max_ms", "target", "started", "completed", "seconds", "evaluation_seconds", "source", "worker",
]  # fmt: skip


def ask(query: str, url: str = URL, **values: Any) -> list[dict[str, Any]]:
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        rows = [dict(row) for row in connection.execute(sa.text(query), values).mappings()]
    engine.dispose()
    return rows


def migrate(engine: sa.Engine, to: str) -> None:
    """Bring the ledger's tables to a revision, up or down."""
    config = Config()
    config.set_main_option("script_location", str(Path(storage_module.__file__).with_name("migrations")))
    config.set_main_option("path_separator", "os")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        (command.downgrade if to == "0001" else command.upgrade)(config, to)


def test_a_row_per_trial_says_what_the_project_itself_reads(load: Load) -> None:
    results = search(load("latency.min=10"), trials=12)
    rows = ask("SELECT * FROM sparsevit_trials WHERE study = :study ORDER BY trial", study="small")
    assert list(rows[0]) == COLUMNS
    assert len(rows) == 12
    for row, trial in zip(rows, results.trials, strict=True):
        assert (row["trial"], row["state"], row["sparsity"]) == (trial.number, "COMPLETE", str(trial.sparsity))
        assert json.loads(row["ratios"]) == [float(value) for value in trial.sparsity.flat]
        assert (row["metric"], row["accuracy"]) == ("bbox_mAP", trial.accuracy["bbox_mAP"])
        assert json.loads(row["metrics"]) == trial.accuracy
        assert row["predicted_ms"] == trial.predicted_ms
        measured = trial.measured
        figures = (measured.median_ms, measured.low_ms, measured.high_ms) if measured else (None, None, None)
        assert (row["measured_ms"], row["measured_low_ms"], row["measured_high_ms"]) == figures
        assert row["confirmed_accuracy"] == (trial.confirmed["bbox_mAP"] if trial.confirmed else None)
        assert (json.loads(row["confirmed_metrics"]) if trial.confirmed else None) == trial.confirmed
        assert row["feasible"] == 1
        assert (row["min_ms"], row["max_ms"]) == (results.bounds.min_ms, results.bounds.max_ms)
        assert row["target"] == results.target
        assert row["started"] < row["completed"]
        assert 0 < row["seconds"] < 60
        assert (row["source"], row["worker"]) == ("evaluated", trial.worker)
    assert any(row["confirmed_accuracy"] for row in rows)
    assert not all(row["confirmed_accuracy"] for row in rows)


def test_postgresql_says_the_same_with_types_of_its_own(load: Load, postgres: str) -> None:
    results = search(load(f"storage.url={postgres}"), trials=12)
    rows = ask("SELECT * FROM sparsevit_trials ORDER BY trial", postgres)
    assert list(rows[0]) == COLUMNS
    for row, trial in zip(rows, results.trials, strict=True):
        assert (row["trial"], row["state"], row["sparsity"]) == (trial.number, "COMPLETE", str(trial.sparsity))
        assert row["ratios"] == [float(value) for value in trial.sparsity.flat]
        assert row["metrics"] == trial.accuracy
        assert row["confirmed_metrics"] == trial.confirmed
        assert row["confirmed_accuracy"] == (trial.confirmed["bbox_mAP"] if trial.confirmed else None)
        assert row["predicted_ms"] == trial.predicted_ms
        assert row["measured_ms"] == (trial.measured.median_ms if trial.measured else None)
        assert row["feasible"] is True
        assert row["started"] < row["completed"]
        assert row["worker"] == trial.worker
    assert any(row["confirmed_accuracy"] for row in rows)


def test_the_front_in_sql_is_the_front(load: Load) -> None:
    results = search(load(), trials=12)
    rows = ask(
        "SELECT trial FROM sparsevit_trials AS one WHERE feasible AND state = 'COMPLETE' AND NOT EXISTS ("
        "  SELECT 1 FROM sparsevit_trials AS other WHERE other.study = one.study AND other.feasible"
        "  AND other.accuracy >= one.accuracy AND other.predicted_ms <= one.predicted_ms"
        "  AND (other.accuracy > one.accuracy OR other.predicted_ms < one.predicted_ms)"
        ") ORDER BY predicted_ms"
    )
    assert [row["trial"] for row in rows] == [one.number for one in results.front]


def test_trials_that_run_or_failed_have_a_row(load: Load, fakes: ModuleType) -> None:
    def fail() -> None:
        if len(fakes.FakeEvaluator.asked) == 3:
            raise ValueError("a fault")

    fakes.FakeEvaluator.before = fail
    with pytest.raises(UserError, match=r"failed for 3 configurations in a row.* ValueError: a fault"):
        search(load(), trials=5)
    study = find_study(open_storage(URL), "small")
    assert study is not None
    study._storage.create_new_trial(study._study_id)
    *others, failed, running = ask("SELECT * FROM sparsevit_trials ORDER BY trial")
    states = [row["state"] for row in (*others, failed, running)]
    assert states == ["COMPLETE", "COMPLETE", "FAIL", "FAIL", "FAIL", "RUNNING"]
    assert failed["sparsity"] is not None
    assert failed["worker"]
    assert failed["feasible"] == 1
    assert (failed["accuracy"], failed["predicted_ms"], failed["measured_ms"]) == (None, None, None)
    assert (running["feasible"], running["completed"], running["seconds"]) == (None, None, None)


def test_beyond_a_bound_is_infeasible(load: Load) -> None:
    search(load(), trials=2)
    storage = open_storage(URL)
    study = find_study(storage, "small")
    assert study is not None
    over = {"constraints:latency.max": 0.25, "constraints:latency.min": -0.5}
    study.add_trial(create_trial(values=[0.5, 30.0], system_attrs=over))
    assert [row["feasible"] for row in ask("SELECT feasible FROM sparsevit_trials ORDER BY trial")] == [1, 1, 0]


def test_other_peoples_studies_are_left_out(load: Load) -> None:
    search(load(), trials=2)
    theirs = optuna.create_study(study_name="theirs", storage=open_storage(URL), directions=["maximize", "minimize"])
    theirs.add_trial(create_trial(values=[0.1, 2.0]))
    assert {row["study"] for row in ask("SELECT study FROM sparsevit_trials")} == {"small"}


def test_a_metric_of_any_name_is_found(load: Load, fakes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    name = 'it\'s "good" $.[0]'
    monkeypatch.setattr(fakes.FakeEvaluator, "accuracy", lambda *_, **__: {name: 0.25, "bbox_mAP": 0.5})
    search(load(f"accuracy.metric={json.dumps(name)}"), trials=2)
    rows = ask("SELECT metric, accuracy, confirmed_accuracy FROM sparsevit_trials WHERE confirmed_accuracy IS NOT NULL")
    assert rows
    assert all(row == {"metric": name, "accuracy": 0.25, "confirmed_accuracy": 0.25} for row in rows)


def test_joined_metrics_are_confirmed_by_their_mean(load: Load) -> None:
    search(load(), trials=3)
    with open_storage(URL).engine.begin() as connection:
        joined = "json_set(value_json, '$.metric', 'segm_mAP+bbox_mAP')"
        connection.execute(sa.text(f"UPDATE study_user_attributes SET value_json = {joined} WHERE key = 'sparsevit'"))
    for row in ask("SELECT * FROM sparsevit_trials WHERE confirmed_metrics IS NOT NULL"):
        metrics = json.loads(row["confirmed_metrics"])
        assert row["confirmed_accuracy"] == pytest.approx((metrics["bbox_mAP"] + metrics["segm_mAP"]) / 2)


def test_trials_of_before_the_view_are_shown_whole(load: Load) -> None:
    search(load(), trials=6)
    query = "SELECT * FROM sparsevit_trials ORDER BY trial"
    before = ask(query)
    storage = open_storage(URL)
    forget = "UPDATE trial_user_attributes SET value_json = json_remove(value_json, '$.kept') WHERE key = 'sparsevit'"
    with storage.engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM trial_user_attributes WHERE key = 'sparsity'"))
        connection.execute(sa.text(forget))
    assert ask(query)[0]["sparsity"] is None
    migrate(storage.engine, "0001")
    with pytest.raises(sa.exc.OperationalError, match="no such table"):
        ask(query)
    open_storage(URL)
    assert ask(query) == before
    assert len(load_results(URL).trials) == 6
