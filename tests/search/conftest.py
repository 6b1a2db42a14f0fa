"""A study file over a fake supernet, in a folder of its own, with a latency that is known."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sparsevit.latency import timing
from sparsevit.search.spec import StudySpec

STUDY = """
name = "small"
[supernet]
evaluator = "search_fakes:evaluator"
[latency]
max = "80%"
[accuracy]
images = 10
[search]
trials = 30
population = 8
confirm = 5
[target]
device = "cpu"
threads = 1
size = [448, 448]
"""

SLOW = """
import os, time
from search_fakes import FakeEvaluator

class Slow(FakeEvaluator):
    def accuracy(self, sparsity, *, images=None, **rest):
        if images == 10:  # a trial's
            note("start", sparsity)
        time.sleep(float(os.environ.get("SLOW_S", "0.15")))
        return super().accuracy(sparsity, images=images, **rest)

def note(what, sparsity):
    with open("evaluations.log", "a") as log:
        log.write(f"{what} {os.getpid()} {sparsity}\\n")

def evaluator(*, config=None, checkpoint="builtin", flavour="plain", device, dtype):
    return Slow(config, checkpoint, flavour, device, dtype)
"""


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module of the fake supernet; what was measured is noted in `measured`."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    import search_fakes  # type: ignore[import-not-found]

    search_fakes.FakeEvaluator.asked.clear()
    search_fakes.FakeEvaluator.before = None
    measured: list[Any] = []

    def measure(backbone: Any, target: Any, sparsities: Any, **rest: Any) -> Any:
        measured.extend(sparsities)
        return search_fakes.measure(backbone, target, sparsities, **rest)

    monkeypatch.setattr(timing, "measure", measure)
    search_fakes.measured = measured
    yield search_fakes
    sys.modules.pop("search_fakes")


@pytest.fixture
def study_file(tmp_path: Path, fakes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.toml"
    path.write_text(STUDY)
    return path


@pytest.fixture
def load(study_file: Path) -> Callable[..., StudySpec]:
    """The study with some `key=value` overruled."""
    return lambda *overrides: StudySpec.load(study_file, overrides)


@pytest.fixture
def slow(load: Callable[..., StudySpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Studies whose evaluations take a while and are written to a log, in other processes too."""
    (tmp_path / "slow_fakes.py").write_text(SLOW)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda *more: load("supernet.evaluator=slow_fakes:evaluator", *more)
    sys.modules.pop("slow_fakes", None)  # not there where the test was skipped
