"""What several commands are tried on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from sparsevit.latency import timing

FAKES = Path(__file__).parents[1] / "search"


@pytest.fixture
def search_fakes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    """A supernet that costs nothing and whose latency is known, importable by name, and an empty folder to be in."""
    monkeypatch.syspath_prepend(FAKES)
    import search_fakes as module  # type: ignore[import-not-found]

    module.FakeEvaluator.asked.clear()
    module.FakeEvaluator.before = None
    monkeypatch.setattr(timing, "measure", module.measure)
    monkeypatch.chdir(tmp_path)
    yield module
    sys.modules.pop("search_fakes")
