"""A whole search over a fake supernet: its promises about budget, bounds, resume and repetition."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, get_args
from wsgiref.util import setup_testing_defaults

import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import TrialState

from sparsevit.errors import UserError
from sparsevit.search.load import load_results
from sparsevit.search.results import StudyResults
from sparsevit.search.run import search
from sparsevit.search.samplers import SamplerName, check_sampler
from sparsevit.search.spec import StudySpec
from sparsevit.search.storage import open_storage
from sparsevit.sparsity import Sparsity

Load = Callable[..., StudySpec]


def get_json(app: Any, path: str, query: str = "") -> Any:
    """What a WSGI app answers to GET."""
    environ: dict[str, Any] = {"PATH_INFO": path, "QUERY_STRING": query}
    setup_testing_defaults(environ)
    return json.loads(b"".join(app(environ, lambda *_: None)))


def configurations(results: StudyResults) -> list[str]:
    return [str(one.sparsity) for one in results.trials]


def test_a_search_keeps_its_promises(load: Load, fakes: ModuleType) -> None:
    results = search(load())
    assert len(results.trials) == results.trials_asked == 30
    kept = [one.sparsity.kept(fakes.WINDOWS) for one in results.trials]
    assert len(set(kept)) == len(kept)
    assert results.bounds.max_ms == pytest.approx(0.8 * 30.0)
    for one in results.trials:
        assert one.feasible
        assert one.predicted_ms <= results.bounds.max_ms
        assert one.predicted_ms == pytest.approx(fakes.true_ms(one.sparsity), rel=1e-6)
    assert results.failed == 0
    best = results.best
    assert best is not None
    assert best.confirmed is not None
    assert best.measured is not None
    assert best.measured.median_ms <= results.bounds.max_ms
    confirmed = [one for one in results.front if one.confirmed]
    assert 1 <= len(confirmed) <= 5
    assert best.confirmed["bbox_mAP"] == max(one.confirmed["bbox_mAP"] for one in confirmed if one.confirmed)
    assert results.references[0].accuracy is not None
    assert results.references[0].measured is not None
    assert "ratios = " in Path("runs/small/finetune.py").read_text()


def test_first_population_spans_the_feasible_band(load: Load, fakes: ModuleType) -> None:
    trials = search(load(), trials=8).trials
    found = sorted(one.predicted_ms for one in trials)
    fastest = fakes.true_ms(Sparsity.of(0.8, fakes.DEPTHS))
    assert found[0] == pytest.approx(fastest)
    assert found[-1] > 0.98 * 24
    gaps = [late - early for early, late in pairwise(found)]
    assert max(gaps) < 2.1 * (found[-1] - found[0]) / 6


def test_typed_again_pays_for_nothing(load: Load, fakes: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    first = search(load())
    fakes.FakeEvaluator.asked.clear()
    fakes.measured.clear()
    capsys.readouterr()
    again = search(load())
    assert fakes.FakeEvaluator.asked == []
    assert fakes.measured == []
    assert again == first
    said = capsys.readouterr().out
    assert "nothing is measured again" in said
    assert "goes on after 30 finished trials" in said


def test_more_trials_go_on_where_it_stopped(load: Load, fakes: ModuleType) -> None:
    whole = configurations(search(load(), trials=40, out="whole"))
    for trials in (5, 13, 30, 40):
        parts = search(load(), trials=trials, out="parts")
        assert len(parts.trials) == trials
    assert configurations(parts) == whole


@pytest.mark.parametrize("stop_at", [1, 4, 12, 23])
def test_interrupted_equals_uninterrupted(load: Load, fakes: ModuleType, stop_at: int) -> None:
    whole = search(load(), out="whole")
    fakes.FakeEvaluator.asked.clear()

    def interrupt() -> None:
        if len(fakes.FakeEvaluator.asked) == stop_at:
            fakes.FakeEvaluator.before = None
            raise KeyboardInterrupt

    fakes.FakeEvaluator.before = interrupt
    with pytest.raises(KeyboardInterrupt):
        search(load(), out="parts")
    parts = search(load(), out="parts")
    assert configurations(parts) == configurations(whole)
    assert len(parts.trials) == 30
    assert parts.failed == 1
    assert [one.sparsity for one in parts.front] == [one.sparsity for one in whole.front]
    paid = [(one.kept(fakes.WINDOWS), images) for one, images in fakes.FakeEvaluator.asked]
    assert len(paid) == len(set(paid))


def test_a_trial_of_a_dead_worker_is_done_again(load: Load, fakes: ModuleType) -> None:
    whole = configurations(search(load(), out="whole"))
    search(load(), trials=11, out="parts")
    # What a killed process leaves: a trial that runs, marked with a process that is no more.
    storage = open_storage(load().url("parts"))
    study = optuna.load_study(study_name="small", storage=storage)
    study._storage.create_new_trial(study._study_id)
    trial_id = study.get_trials(states=(TrialState.RUNNING,))[0]._trial_id
    study._storage.set_trial_user_attr(trial_id, "worker", f"{socket.gethostname()}:{2**22 + 1}")
    parts = search(load(), out="parts")
    assert configurations(parts) == whole
    assert parts.failed == 1


def test_a_search_ends_when_the_space_does(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    small = ("space.ratios=[0, 0.5]", "latency.max='70%'", "search.trials=100")
    results = search(load(*small))
    assert 1 < len(results.trials) < 48
    assert results.failed == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"so the search ends after {len(results.trials)} trials" in said
    assert len(search(load(*small)).trials) == len(results.trials)


def test_lower_bound_holds(load: Load) -> None:
    results = search(load("latency.min=20"), trials=12)
    assert all(20 <= one.predicted_ms <= results.bounds.max_ms for one in results.trials)
    assert min(one.predicted_ms for one in results.trials) < 20.2


def test_another_study_in_the_same_database_pays_once(load: Load, fakes: ModuleType) -> None:
    search(load(), trials=8)
    fakes.FakeEvaluator.asked.clear()
    other = search(load("name=other", "storage.directory=runs/small", "latency.max='75%'"), trials=8)
    known = {str(one) for one, _ in fakes.FakeEvaluator.asked}
    reused = [one for one in other.trials if str(one.sparsity) not in known]
    assert reused  # the fastest configuration is the end of both bands
    assert len(optuna.get_all_study_names(open_storage("sqlite:///runs/small/study.db"))) == 2


@pytest.mark.parametrize("sampler", get_args(SamplerName))
def test_fixed_layers_stay_fixed_whoever_samples(load: Load, sampler: str) -> None:
    try:
        check_sampler(sampler)
    except UserError as error:
        pytest.skip(str(error))
    layers = ("space.layers.s1=0.4", "space.layers.s3=[0.2, 0.6]", "space.layers.s4=0")
    results = search(load(f"search.sampler={sampler}", "search.confirm=1", "search.population=4", *layers), trials=7)
    found = [one.sparsity for one in results.trials]
    assert len(set(found)) == len(found) == 7
    for one in found:
        first, _, third, fourth = one.stages
        assert (first, fourth) == ((Decimal("0.4"),), (Decimal(0),))
        assert set(third) <= {Decimal("0.2"), Decimal("0.6")}


def test_a_mean_of_metrics_is_what_is_maximised(load: Load) -> None:
    results = search(load('accuracy.metric=["bbox_mAP", "segm_mAP"]', "search.confirm=2"), trials=5)
    assert results.metric == "bbox_mAP+segm_mAP"
    assert results.best is not None
    assert results.best.confirmed is not None
    for figures in (*(one.accuracy for one in results.trials), results.best.confirmed):
        assert figures[results.metric] == pytest.approx((figures["bbox_mAP"] + figures["segm_mAP"]) / 2)
    with pytest.raises(UserError, match=r"accuracy\.metric = 'mask' is not among"):
        search(load('accuracy.metric=["bbox_mAP", "mask"]', "name=other"), trials=5)


def test_other_settings_are_refused_with_their_names(load: Load, fakes: ModuleType) -> None:
    search(load(), trials=8)
    fakes.FakeEvaluator.asked.clear()
    with pytest.raises(UserError) as caught:
        search(load("latency.max='60%'", "accuracy.images=20", "supernet.flavour=spicy"), trials=9)
    text = str(caught.value)
    for change in ("latency.max 80% -> 60%", "accuracy.images 10 -> 20", "supernet.flavour plain -> spicy"):
        assert change in text
    assert "\n" not in text
    assert fakes.FakeEvaluator.asked == []
    assert len(load_results(load()).trials) == 8


def test_studies_of_others_are_left_alone(load: Load, fakes: ModuleType) -> None:
    storage = open_storage("sqlite:///runs/small/study.db")
    for name, trials in (("small", 0), ("used", 1)):
        theirs = optuna.create_study(study_name=name, storage=storage, direction="minimize")
        for _ in range(trials):
            theirs.add_trial(optuna.trial.create_trial(value=1.0))
    for name in ("small", "used"):
        with pytest.raises(UserError, match=f"the study '{name}' was not made by sparsevit"):
            search(load(f"name={name}", "storage.directory=runs/small"), trials=2)
        assert optuna.load_study(study_name=name, storage=storage).user_attrs == {}


def test_a_study_whose_making_was_interrupted_is_completed(load: Load) -> None:
    storage = open_storage("sqlite:///runs/small/study.db")
    optuna.create_study(study_name="small", storage=storage, directions=["maximize", "minimize"])
    with pytest.raises(UserError, match="holds no study 'small'"):
        load_results(load())
    assert len(search(load(), trials=2).trials) == 2


def test_killed_while_evaluating_equals_uninterrupted(load: Load, study_file: Path) -> None:
    """A process that is killed for good, the next one right after it."""
    whole = configurations(search(load(), trials=14, out="whole"))
    code = f"""
import os, signal, search_fakes
from sparsevit.latency import timing
timing.measure = search_fakes.measure
def kill():
    if len(search_fakes.FakeEvaluator.asked) == 11:
        os.kill(os.getpid(), signal.SIGKILL)
search_fakes.FakeEvaluator.before = kill
from sparsevit.search.run import search
from sparsevit.search.spec import StudySpec
search(StudySpec.load({str(study_file)!r}), trials=14, out="parts")
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    before = load_results(load(), out="parts")
    assert len(before.trials) == 10
    after = search(load(), trials=14, out="parts")
    assert configurations(after) == whole
    assert after.failed == 1


def test_results_come_from_the_database_alone(load: Load, fakes: ModuleType) -> None:
    results = search(load(), trials=10)
    assert load_results(load()) == results
    assert load_results("sqlite:///runs/small/study.db") == results
    assert load_results("sqlite:///runs/small/study.db", "small") == results
    with pytest.raises(UserError, match="no study 'other'; there are: small"):
        load_results("sqlite:///runs/small/study.db", "other")


def test_evaluations_that_are_no_number_end_the_search(load: Load, fakes: ModuleType) -> None:
    search(load(), trials=3)
    original = fakes.FakeEvaluator.accuracy
    try:
        fakes.FakeEvaluator.accuracy = lambda *_, **__: {"bbox_mAP": float("nan"), "segm_mAP": 0.1}
        with pytest.raises(UserError, match="bbox_mAP = nan"):
            search(load(), trials=6)
    finally:
        fakes.FakeEvaluator.accuracy = original
    assert len(search(load(), trials=6).trials) == 6


def test_optuna_dashboard_shows_names_and_feasibility(load: Load) -> None:
    from optuna_dashboard import wsgi

    search(load("latency.min=10"), trials=9)
    storage = open_storage("sqlite:///runs/small/study.db")
    app = wsgi(storage)
    (summary,) = get_json(app, "/api/studies")["study_summaries"]
    detail = get_json(app, f"/api/studies/{summary['study_id']}", "after=0")
    assert summary["directions"] == ["maximize", "minimize"]
    assert detail["objective_names"] == ["bbox_mAP", "predicted latency (ms)"]
    assert len(detail["trials"]) == 9
    for trial in detail["trials"]:
        over, under = trial["constraints"]
        assert over == pytest.approx(trial["values"][1] / 24 - 1)
        assert under == pytest.approx(1 - trial["values"][1] / 10)
        assert over <= 0
        assert under <= 0


def test_wal_and_our_tables_are_there(load: Load) -> None:
    search(load(), trials=2)
    engine = sa.create_engine("sqlite:///runs/small/study.db")
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    assert {"studies", "sparsevit_accuracies", "sparsevit_alembic_version"} <= set(sa.inspect(engine).get_table_names())
    engine.dispose()
