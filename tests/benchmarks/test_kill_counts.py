"""The benchmark that kills searches counts evaluations that are paid for twice, and none that a kill explains."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    folder = Path(__file__).parents[2] / "benchmarks"
    monkeypatch.syspath_prepend(folder)
    spec = importlib.util.spec_from_file_location("faults", folder / "faults.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    for name in ("faults", "faults_counts", "faults_search", "private_postgres"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "faults", module)
    spec.loader.exec_module(module)
    return module


def line(what: str, at: float, process: int, sparsity: str = "a", known: bool = False) -> dict[str, Any]:
    return {"what": what, "at": at, "process": process, "sparsity": sparsity, "images": 10, "known": known}


@pytest.mark.parametrize(
    ("lines", "killed", "wrong"),
    [
        ([line("start", 0, 1), line("end", 1, 1), line("start", 2, 2, "b"), line("end", 3, 2, "b")], [], {}),
        ([line("start", 0, 1), line("start", 2, 2), line("end", 3, 2)], [(1, 1.0)], {}),
        ([line("start", 0, 1), line("end", 1, 1), line("start", 3, 2), line("end", 4, 2)], [(1, 2.0)], {}),
        (
            [line("start", 0, 1), line("end", 1, 1), line("start", 3, 2, known=True), line("end", 4, 2)],
            [(1, 2.0)],
            {"paid_for_though_known": 1},
        ),
        (
            [line("start", 0, 1), line("end", 1, 1), line("start", 3, 2), line("end", 4, 2)],
            [],
            {"wasted_without_a_kill": 1},
        ),
        ([line("start", 0, 1), line("start", 2, 2), line("end", 3, 2)], [], {"wasted_without_a_kill": 1}),
        (
            [line("start", 0, 1), line("start", 1, 2), line("end", 2, 1), line("end", 3, 2)],
            [(1, 5.0), (2, 5.0)],
            {"paid_for_twice_at_once": 1},
        ),
    ],
)
def test_evaluations_are_counted(
    faults: ModuleType,
    tmp_path: Path,
    lines: list[dict[str, Any]],
    killed: list[tuple[int, float]],
    wrong: dict[str, int],
) -> None:
    counts = faults.Counts()
    search = faults.Search("one", "sqlite:///x.db", tmp_path / "one", 5, 0, 1, counts, random.Random(0))
    search.killed.extend(killed)
    (search.folder / "evaluations.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    search._check_evaluations()
    assert counts.evaluations == sum(one["what"] == "start" for one in lines)
    assert counts.wrong == sum(wrong.values())
    for name, value in wrong.items():
        assert getattr(counts, name) == value


def test_what_is_gone_or_changed_is_lost(faults: ModuleType) -> None:
    assert faults.lost({1: "a", 2: "b", 3: "c"}, {1: "a", 2: "other", 4: "d"}) == 2
