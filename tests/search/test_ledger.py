"""The ledger keeps figures apart that are of different things, and together what keeps the same windows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy.engine import Engine

from sparsevit.latency.results import Timing
from sparsevit.search.ledger import Accuracy, Ledger, Subject, digest
from sparsevit.search.storage import open_storage
from sparsevit.sparsity import Sparsity

SUBJECT = Subject((448, 448), (256, 4), "e" * 64, "cpu threads=1", "v" * 64, "b" * 64)
ONE, SAME, OTHER = (Sparsity.parse(text) for text in ("0.3/0.3", "0.3/0.4", "0.3/0.6"))


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return open_storage(f"sqlite:///{tmp_path / 'study.db'}").engine


def test_accuracies_are_shared_by_kept_windows_and_by_nothing_else(engine: Engine) -> None:
    ledger = Ledger(engine, SUBJECT)
    assert ONE.kept(SUBJECT.windows) == SAME.kept(SUBJECT.windows) != OTHER.kept(SUBJECT.windows)
    accuracy = Accuracy({"bbox_mAP": 0.1 + 0.2}, 1.5)
    ledger.put_accuracy(ONE, None, accuracy)
    assert ledger.accuracies([ONE, SAME, OTHER], None) == [accuracy, accuracy, None]
    assert ledger.accuracy(SAME, None) == accuracy
    assert ledger.accuracy(ONE, 10) is None
    for changed in ({"evaluator": "f" * 64}, {"size": (449, 448)}):
        assert Ledger(engine, replace(SUBJECT, **changed)).accuracy(ONE, None) is None  # type: ignore[arg-type]
    for same in ({"target": "cuda:0"}, {"environment": "w" * 64}, {"backbone": "c" * 64}):
        assert Ledger(engine, replace(SUBJECT, **same)).accuracy(ONE, None) == accuracy  # type: ignore[arg-type]


def test_latencies_are_of_target_environment_and_backbone(engine: Engine) -> None:
    ledger = Ledger(engine, SUBJECT)
    timing = Timing(10.0, 9.5, 10.5, 40)
    ledger.put_latency(ONE, timing)
    ledger.put_latency_model("space", "{}")
    assert ledger.latencies([OTHER, SAME]) == [None, timing]
    assert ledger.latency_model("space") == "{}"
    assert ledger.latency_model("other space") is None
    for changed in ({"target": "cuda:0"}, {"environment": "w" * 64}, {"backbone": "c" * 64}):
        other = Ledger(engine, replace(SUBJECT, **changed))  # type: ignore[arg-type]
        assert other.latencies([ONE]) == [None]
        assert other.latency_model("space") is None


def test_the_first_entry_stays(engine: Engine) -> None:
    ledger = Ledger(engine, SUBJECT)
    ledger.put_accuracy(ONE, 5, Accuracy({"bbox_mAP": 0.5}, 1.0))
    ledger.put_accuracy(SAME, 5, Accuracy({"bbox_mAP": 0.6}, 2.0))
    assert ledger.accuracy(ONE, 5) == Accuracy({"bbox_mAP": 0.5}, 1.0)


def test_digests_know_content_not_order() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 2, "b": 1})
