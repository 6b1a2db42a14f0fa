"""The table of accuracies is made, resumed, merged and read back; the benchmark counts what it says it counts."""

from __future__ import annotations

import gzip
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from sparsevit.errors import UserError
from sparsevit.latency.additive import Terms
from sparsevit.latency.model import LatencyModel
from sparsevit.latency.results import Timing
from sparsevit.latency.target import Target
from sparsevit.sparsity import Sparsity, SparsitySpace, windows_per_stage


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    folder = Path(__file__).parents[2] / "benchmarks"
    monkeypatch.syspath_prepend(folder)
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def making(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load("accuracy_table", monkeypatch)


@pytest.fixture
def landscapes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load("accuracy_landscape", monkeypatch)


@pytest.fixture
def quality(landscapes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load("sampler_quality", monkeypatch)


class Judge:
    """Counts what it is asked; breaks after so many."""

    def __init__(self, breaks_after: int = 10**6) -> None:
        self.asked: list[Sparsity] = []
        self._left = breaks_after

    def accuracy(self, sparsity: Sparsity, *, images: int | None = None, step: Any = None) -> Mapping[str, float]:
        if not self._left:
            raise KeyboardInterrupt
        self._left -= 1
        self.asked.append(sparsity)
        lost = sum(float(value) ** 2 for value in sparsity.flat) / 60
        return {"bbox_mAP": 0.9 - lost, "segm_mAP": 0.8 - lost}


@pytest.fixture
def model() -> LatencyModel:
    space = SparsitySpace()
    cells = tuple(tuple(-0.1 * (1 + layer) * level for level in range(9)) for layer in range(6))
    terms = (Terms(20.0, cells, ((0.0,) * 9,) * 4),)
    windows = windows_per_stage((448, 448))
    return LatencyModel(Target("cpu"), {}, space, windows, Timing(20.0, 19.9, 20.1, 9), terms, (), ())


def fill(making: ModuleType, folder: Path, model: LatencyModel, count: int = 60, ranks: int = 2) -> list[Sparsity]:
    making.write(folder / "latency.json", model.to_json().encode())
    asked = []
    for rank in range(ranks):
        judge, part = Judge(), making.Part.open(folder / f"part-{rank}-of-{ranks}-seed-0.csv")
        making.evaluate(
            judge, making.everything(model), part, count=count // ranks, images=500, seed=0, rank=rank, ranks=ranks
        )
        asked += judge.asked
    return asked


def test_processes_share_the_work_and_a_table_is_read_back(
    making: ModuleType, landscapes: ModuleType, model: LatencyModel, tmp_path: Path
) -> None:
    asked = fill(making, tmp_path, model)
    assert len(set(asked)) == len(asked) == 60
    assert model.space.dense in asked
    table = tmp_path / "table.csv.gz"
    assert making.merge(tmp_path, table, 500) == 60
    assert gzip.decompress(table.read_bytes()).startswith(b"# the built-in supernet on 500 images")
    found = landscapes.from_table(table, "bbox_mAP")
    assert {found.known.sparsity(row) for row in range(60)} == set(asked)
    dense = found.known.row(model.space.dense)
    assert found.accuracies[dense] == 0.9
    assert found.known.ms[dense] == pytest.approx(20.0)
    slow = found.within(found.bounds(0.5)).ms[-1]
    assert slow <= (found.known.ms[0] + 20) / 2


def test_an_interrupted_process_goes_on_as_if_it_had_not_been(
    making: ModuleType, model: LatencyModel, tmp_path: Path
) -> None:
    candidates = making.everything(model)
    whole, first, second = Judge(), Judge(breaks_after=17), Judge()
    making.evaluate(whole, candidates, making.Part.open(tmp_path / "whole.csv"), count=40, images=5, seed=3)
    with pytest.raises(KeyboardInterrupt):
        making.evaluate(first, candidates, making.Part.open(tmp_path / "part.csv"), count=40, images=5, seed=3)
    making.evaluate(second, candidates, making.Part.open(tmp_path / "part.csv"), count=40, images=5, seed=3)
    assert first.asked + second.asked == whole.asked
    assert (tmp_path / "part.csv").read_text() == (tmp_path / "whole.csv").read_text()


def test_the_second_half_lies_nearer_to_the_front(making: ModuleType, model: LatencyModel, tmp_path: Path) -> None:
    judge = Judge()
    making.evaluate(judge, making.everything(model), making.Part(tmp_path / "p.csv"), count=800, images=5, seed=0)
    everything = making.everything(model)
    best = np.maximum.accumulate(0.9 - ((everything.levels / 10) ** 2).sum(axis=1) / 60)
    rows = [everything.row(one) for one in judge.asked]
    below = best[rows] - [judge.accuracy(one)["bbox_mAP"] for one in judge.asked[:800]]
    assert np.median(below[600:]) < 0.6 * np.median(below[:400])


def test_nothing_to_merge_is_refused(making: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no latency\.json with part-\*\.csv beside it: evaluate first"):
        making.merge(tmp_path, tmp_path / "table.csv.gz", 500)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no table"),
        ("configuration,ms\n", "has no rows with the columns"),
        ("configuration,images,bbox_mAP,ms\n0.3/0/oops/0,500,0.5,1\n", "row 1: "),
        ("configuration,images,bbox_mAP,ms\n0.3/0/0.1,0.2,0.2/0,500,much,1\n", "row 1: "),
    ],
)
def test_a_table_that_cannot_be_read_is_refused(
    landscapes: ModuleType, tmp_path: Path, text: str | None, message: str
) -> None:
    path = tmp_path / "table.csv.gz"
    if text is not None:
        path.write_bytes(gzip.compress(text.encode()))
    with pytest.raises(UserError, match=message):
        landscapes.from_table(path, "bbox_mAP")


def test_what_is_no_gzip_is_refused(landscapes: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "table.csv.gz"
    path.write_text("configuration")
    with pytest.raises(UserError, match="cannot read"):
        landscapes.from_table(path, "bbox_mAP")


def test_made_up_surfaces_are_as_high_as_the_real_one(landscapes: ModuleType) -> None:
    one, same, other = (landscapes.synthetic(seed) for seed in (1, 1, 2))
    dense = one.known.row(one.space.dense)
    assert one.accuracies[dense] == pytest.approx(0.8926, abs=0.005)
    assert (one.accuracies == same.accuracies).all()
    assert (one.accuracies != other.accuracies).any()


def test_a_search_of_a_table_counts_until_both_aims_are_reached(
    making: ModuleType, landscapes: ModuleType, quality: ModuleType, model: LatencyModel, tmp_path: Path
) -> None:
    fill(making, tmp_path, model)
    making.merge(tmp_path, tmp_path / "table.csv.gz", 500)
    landscape = landscapes.from_table(tmp_path / "table.csv.gz", "bbox_mAP")
    within = len(landscape.within(landscape.bounds(0.75)))
    for sampler in ("random", "surrogate"):
        (need,) = quality.solve(quality.Task(landscape, sampler, 0.75, 0, 4, 1000)).values()
        assert 1 <= need.best <= within
        assert 1 <= need.volume <= within
    both = quality.solve(quality.Task(landscape, "stock", 0.75, 0, 4, 2000))
    # The ledger's count is of feasible configurations, each once; stock pays for the infeasible as well.
    assert both["stock+ledger"].best <= within
    assert both["stock+ledger"].best <= both["stock"].best
    assert quality.solve(quality.Task(landscape, "surrogate", 0.75, 0, 4, 1))["surrogate"].volume == np.inf


def test_the_default_needs_few_evaluations_on_the_real_accuracies(landscapes: ModuleType, quality: ModuleType) -> None:
    """On the table that is kept with the benchmark; the figures that the docs quote are of 20 seeds."""
    landscape = landscapes.from_table(landscapes.TABLE, "bbox_mAP")
    assert len(landscape.known) >= 3000
    assert 0.75 < landscape.accuracies.min() < landscape.accuracies.max() < 0.9
    (need,) = quality.solve(quality.Task(landscape, "surrogate", 0.5, 0, 20, 200)).values()
    assert max(need.best, need.volume) <= 150  # at most 74 and 32 with those seeds; stock NSGA-II takes 600


def test_goals_are_what_the_words_say(quality: ModuleType) -> None:
    ms, accuracies = np.array([1.0, 2.0, 3.0]), np.array([0.2, 0.5, 0.5009])
    goal = quality.Goal(ms, accuracies, (4.0, 0.1), 0.1 + 0.4 + 0.4009)
    assert list(goal.reached(np.array([0]))) == []
    assert list(goal.reached(np.array([1]))) == ["best"]
    assert set(goal.reached(np.array([0, 1]))) == {"best", "volume"}


def test_quantiles_count_searches_that_were_given_up_as_infinite(quality: ModuleType) -> None:
    assert quality.quantiles(np.array([1.0, 2.0, np.inf])) == [2.0, 2.0, np.inf]
