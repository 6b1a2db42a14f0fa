"""`sparsevit latency` as the user sees it; fitting itself is tested in tests/latency."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sparsevit.cli import latency as command
from sparsevit.cli.app import main
from sparsevit.errors import UserError
from sparsevit.latency import timing
from sparsevit.latency.model import LatencyModel

FAKES = Path(__file__).parents[1] / "search" / "search_fakes.py"
STUDY = """
name = "small"
[supernet]
evaluator = "search_fakes:evaluator"
[latency]
max = "80%"
[target]
device = "cpu"
threads = 1
"""


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["latency", *words])
    assert isinstance(stop.value.code, int)
    return stop.value.code


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """A supernet whose latency is known, as a study in the current folder and in place of what configs describe."""
    spec = importlib.util.spec_from_file_location("search_fakes", FAKES)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "search_fakes", module)
    monkeypatch.setattr(timing, "measure", module.measure)

    def load_subject(config: str, checkpoint: str | None, *_: Any) -> tuple[Any, list[str]]:
        if config == "absent.py":
            raise UserError("config not found: absent.py")
        return module.FakeBackbone(), []

    monkeypatch.setattr(command, "load_subject", load_subject)
    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text(STUDY)
    return module


def test_a_study_keeps_its_model_which_is_checked_and_shown(
    fakes: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", "small.toml") == 0
    out = capsys.readouterr().out
    assert "cpu threads=1 float32 batch=1 448x448 eager backbone" in out
    assert "dense 30 ms measured" in out
    assert "Kendall's tau 1.000" in out
    assert "stored in sqlite:///runs/small/study.db" in out
    assert run("check", "small.toml", "-n", "10") == 0
    assert "error on 10 held-out configurations: 0.00% in the mean" in capsys.readouterr().out
    for source in ("small.toml", "sqlite:///runs/small/study.db"):
        assert run("show", source) == 0
        out = capsys.readouterr().out
        rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith("s")}
        assert list(rows) == ["s1", "s2", "s3.1", "s3.2", "s4"]
        assert rows["s1"][:2] == ["256", "0"]
        assert float(rows["s1"][-1]) == pytest.approx(9 * (51 / 256 - 1), abs=0.01)
        assert "stale" not in out
        assert "seconds ago" in out


def test_a_file_keeps_the_model_of_a_config(fakes: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", "m.py", "--device", "cpu", "--threads", "1", "--out", "m.json") == 0
    assert [path.name for path in Path().iterdir() if "m.json" in path.name] == ["m.json"]
    model = LatencyModel.from_json(Path("m.json").read_text())
    assert model.error.largest < 1e-3
    assert run("check", "m.py", "--model", "m.json", "-n", "5") == 0
    assert run("show", "m.json") == 0
    assert "Kendall's tau" in capsys.readouterr().out


def test_a_model_that_errs_too_much_fails_its_check(
    fakes: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", "small.toml") == 0
    true_ms: Callable[..., float] = fakes.true_ms
    monkeypatch.setattr(fakes, "true_ms", lambda one: true_ms(one) * (1 + 0.5 * float(one.flat[0])))
    capsys.readouterr()
    assert run("check", "small.toml") == 1
    out = capsys.readouterr().out
    assert "the mean error is above 5.0%: fit again" in out
    assert "worst: " in out
    assert run("check", "small.toml", "--set", "latency.error_limit=0.9") == 0


def test_a_stale_model_is_shown_as_such_and_not_checked(fakes: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", "m.py", "--device", "cpu", "--threads", "1", "--out", "m.json") == 0
    fields = json.loads(Path("m.json").read_text())
    fields["environment"]["torch"] = "1.0"
    Path("m.json").write_text(json.dumps(fields))
    capsys.readouterr()
    assert run("show", "m.json") == 0
    assert "stale: this is another environment now (torch 1.0 then" in " ".join(capsys.readouterr().out.split())
    assert run("check", "m.py", "--model", "m.json") == 2
    assert "the latency model is stale: its environment was another (torch 1.0 then" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["fit", "m.py"], "name a file with --out"),
        (["fit", "m.py", "--out", "no/m.json"], "cannot write no/m.json: no folder no"),
        (["fit", "m.py", "--out", "."], "cannot write .: it is a folder"),
        (["fit", "absent.py", "--out", "m.json"], "config not found: absent.py"),
        (["fit", "absent.toml"], "there is no study file absent.toml"),
        (["fit", "small.toml", "--seconds", "0"], "--seconds 0 is no time to measure in"),
        (["fit", "m.py", "--out", "m.json", "--size", "big"], "cannot read the image size 'big'"),
        (["check", "m.py"], "name its file with --model"),
        (["check", "m.py", "--model", "absent.json"], "cannot read the latency model absent.json: No such file"),
        (["check", "m.py", "--model", "small.toml"], "small.toml: this is no latency model"),
        (["check", "small.toml"], "keeps no latency model of cpu threads=1"),
        (["show", "absent.json"], "cannot read the latency model absent.json"),
        (["show", "small.toml"], "runs/small/study.db"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    fakes: ModuleType, capsys: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    assert run(*words) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert line in err
    assert not Path("m.json").exists()


def test_a_model_of_another_backbone_is_refused(
    fakes: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", "m.py", "--device", "cpu", "--threads", "1", "--out", "m.json") == 0
    monkeypatch.setattr(fakes.FakeBackbone, "depths", (2, 2))
    assert run("check", "m.py", "--model", "m.json") == 2
    assert "is of depths (2, 2, 4, 2), but the backbone has (2, 2)" in capsys.readouterr().err


def test_check_wants_at_least_two(fakes: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", "small.toml") == 0
    capsys.readouterr()
    assert run("check", "small.toml", "-n", "1") == 2
    assert "check at least 2" in capsys.readouterr().err
