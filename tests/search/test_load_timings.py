"""What results say beyond trials: all that was measured, uniform references that are known, trials that run."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from optuna.trial import TrialState, create_trial

from sparsevit.search.ledger import Accuracy, Ledger
from sparsevit.search.load import load_results
from sparsevit.search.record import read_record
from sparsevit.search.run import search
from sparsevit.search.spec import StudySpec
from sparsevit.search.storage import storage_at
from sparsevit.search.study import find_study


def test_timings_uniform_references_and_running_trials(load: Callable[..., StudySpec], fakes: ModuleType) -> None:
    spec = load("search.trials=8")
    results = search(spec)
    assert "uniform 30%" not in {one.label for one in results.references}
    assert not results.running
    cells = [one for one in results.timings if one.at is None]
    assert cells
    assert all(one.fitted for one in cells)
    stored = [one for one in results.timings if one.at is not None]
    assert {one.sparsity for one in stored} >= {one.sparsity for one in results.trials if one.measured}
    assert all(abs(one.predicted_ms / one.measured.median_ms - 1) < 0.1 for one in results.timings)
    with storage_at(spec.url()) as storage:
        study = find_study(storage, spec.name)
        assert study is not None
        record = read_record(study)
        assert record is not None
        uniform = record.space.uniform("0.3")
        ledger = Ledger(storage.engine, record.subject)
        ledger.put_accuracy(uniform, results.images_confirm, Accuracy({"bbox_mAP": 0.5}, 1.0))
        (timing,) = fakes.measure(fakes.FakeBackbone(), None, [uniform])
        ledger.put_latency(uniform, timing)
        study.add_trial(create_trial(state=TrialState.RUNNING))
    again = load_results(spec)
    added = next(one for one in again.references if one.label == "uniform 30%")
    assert added.accuracy == {"bbox_mAP": 0.5}
    assert len(again.references) == len(results.references) + 1
    assert [one.number for one in again.running] == [len(results.trials)]
