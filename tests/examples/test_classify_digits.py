"""The example without a detector, end to end: trained a little, searched, its choice printed."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from sparsevit.cli import app as cli
from sparsevit.latency import fitting
from sparsevit.sparsity import Sparsity

pytest.importorskip("sklearn")

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("classify_digits", EXAMPLES / "classify_digits.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("classify_digits", None)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    out, err = capsys.readouterr()
    assert (stop.value.code, err) == (0, "")
    return out


def test_canvases_depend_on_the_seed_alone(example: ModuleType) -> None:
    images, labels = example.canvases("val", np.arange(5), seed=3)
    again, same = example.canvases("val", np.arange(5), seed=3)
    assert images.shape == (5, 3, 64, 64)
    assert torch.equal(images, again)
    assert torch.equal(labels, same)
    assert not torch.equal(images, example.canvases("val", np.arange(5), seed=4)[0])


def test_from_training_to_a_choice(
    example: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The study file as it stands, from another folder than its own, with fewer trials and less measuring."""
    monkeypatch.setattr(fitting, "CPU_SECONDS", 1.0)
    (tmp_path / "examples").mkdir()
    for file in EXAMPLES.glob("classify_digits.*"):
        shutil.copy(file, tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "classify_digits", raising=False)
    accuracy = example.train(example.WEIGHTS, iterations=2, batch=4)
    assert 0 <= accuracy <= 1
    study = "examples/classify_digits.toml"
    settings = ("accuracy.confirm_images=60", "accuracy.images=20", "latency.error_limit=9.0", "search.confirm=1")
    few = [word for one in settings for word in ("--set", one)]
    out = run(capsys, "search", study, "--trials", "4", *few)
    assert re.search(r"dense subnet: top1 0\.\d+, top3 0\.\d+, ", out)
    assert "Pareto front of 4 trials" in out
    judged = example.evaluator(checkpoint=str(example.WEIGHTS), device="cpu", dtype="float32")
    (row,) = re.findall(r"(?m)^ *0\*? +([\d./,]+) +(0\.\d+)? ", out)
    confirmed = judged.accuracy(Sparsity.parse(row[0]), images=60)["top1"]
    assert not row[1] or float(row[1]) == pytest.approx(confirmed, abs=1e-4)
    out = run(capsys, "export", study, "--max-latency", "99%", *few)
    assert "best known within " in out
    assert "classify_digits:evaluator has no export, so no config is written" in out
