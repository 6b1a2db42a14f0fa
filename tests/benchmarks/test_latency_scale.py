"""The scale study's bookkeeping; what it measures is `compare`'s, and tested there."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sparsevit.latency.comparison import Comparison, Row
from sparsevit.latency.memory import shortage
from sparsevit.latency.target import Target

WORDS = ["--device", "cpu", "--threads", "1", "--sizes", "224", "448", "--batches", "1", "4"]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "latency_scale.py"
    spec = importlib.util.spec_from_file_location("latency_scale", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "latency_scale", module)
    spec.loader.exec_module(module)
    return module


class Fake:
    """Measures nothing: a microsecond a pixel, and 60 % everywhere is a tenth slower than dense on small images."""

    def __init__(self, most_pixels: int = 1 << 40) -> None:
        self.asked: list[Target] = []
        self.most_pixels = most_pixels

    def __call__(self, subject: Any, target: Target, sparsities: Any, *, budget_s: float) -> Comparison:
        self.asked.append(target)
        pixels = target.batch * target.size[0] * target.size[1]
        if pixels > self.most_pixels:
            raise shortage(target, None)
        dense, small = pixels / 1e6, target.size[0] < 448
        factors = (1.0, 0.8, 1.1 if small else 0.5)
        rows = [
            Row(one, dense * f, dense * f * 0.99, dense * f * 1.01, 9, 1 / f, 1.0, None)
            for one, f in zip([type(sparsities[0]).of(None, (2, 2, 6, 2)), *sparsities], factors, strict=True)
        ]
        return Comparison(target, "median", {}, {}, tuple(rows), ())


def test_every_point_once_small_ones_first_and_again_nothing(script: Any, tmp_path: Path, monkeypatch: Any) -> None:
    fake = Fake()
    monkeypatch.setattr(script, "compare", fake)
    script.main([*WORDS, "--out", str(tmp_path)])
    order = [(one.size[0], one.batch) for one in fake.asked]
    assert order == [(224, 1), (224, 4), (448, 1), (448, 4)]
    text = (tmp_path / "latency_scale.md").read_text()
    assert "| 448 | 4 | 0.8028 ± 1.0% | 0.6423 ± 1.0%, 1.25× | 0.4014 ± 1.0%, 2.00× | - |" in text
    assert "Slower than dense: 224x224 batch 1 (0.91×), 224x224 batch 4 (0.91×)." in text
    assert "16 times the pixels take 16 times as long" in text
    assert "Not measured" not in text
    assert "plotly" in (tmp_path / "latency_scale.html").read_text().lower()
    script.main([*WORDS, "--out", str(tmp_path)])
    assert len(fake.asked) == 4


def test_what_does_not_fit_or_take_too_long_is_left_out_and_said(script: Any, tmp_path: Path, monkeypatch: Any) -> None:
    fake = Fake(most_pixels=224 * 224)
    monkeypatch.setattr(script, "compare", fake)
    script.main([*WORDS, "--out", str(tmp_path)])
    text = (tmp_path / "latency_scale.md").read_text()
    assert "- 224x224 batch 4: no memory left on cpu for batch 4 at 224x224" in text
    assert "- 448x448 batch 4: larger than what did not fit (224x224 batch 4)" in text
    assert [one.batch for one in fake.asked] == [1, 4]
    late = Fake()
    monkeypatch.setattr(script, "compare", late)
    script.main([*WORDS, "--seconds", "0.000001", "--out", str(tmp_path)])
    assert late.asked == []
    assert "out of time: takes about 0 s, 0 s were left" in (tmp_path / "latency_scale.md").read_text()


@pytest.mark.parametrize(
    ("content", "words", "line"),
    [
        ("{}", [], "holds no scale study"),
        ("not JSON", [], "holds no scale study"),
        (None, ["--ratios", "0.5", "0.7"], "another setting or environment (ratios 0.3,0.6 then, 0.5,0.7 now)"),
    ],
)
def test_another_studys_file_is_refused(
    script: Any, tmp_path: Path, monkeypatch: Any, capsys: Any, content: str | None, words: list[str], line: str
) -> None:
    monkeypatch.setattr(script, "compare", Fake())
    path = tmp_path / "latency_scale.json"
    if content is None:
        script.main([*WORDS, "--out", str(tmp_path)])
        assert json.loads(path.read_text())["points"]
    else:
        path.write_text(content)
    before = path.read_text()
    with pytest.raises(SystemExit):
        script.main([*WORDS, *words, "--out", str(tmp_path)])
    assert line in capsys.readouterr().err
    assert path.read_text() == before
