"""`search`, `status` and `export` as a user types them: what they print, and one line for every mistake."""

from __future__ import annotations

import os
import re
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import optuna
import pytest
import typer

from sparsevit.cli import app as cli
from sparsevit.cli.export import export
from sparsevit.cli.search import search
from sparsevit.cli.status import status

STUDY = """
name = "small"
[supernet]
evaluator = "search_fakes:evaluator"
[latency]
max = "80%"
[accuracy]
images = 10
[search]
trials = 9
population = 5
confirm = 4
[target]
device = "cpu"
threads = 1
"""


@pytest.fixture(autouse=True)
def fakes(search_fakes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A folder with a study over a fake supernet, and a command line of three commands."""
    commands = typer.Typer()
    for command in (search, status, export):
        commands.command()(command)
    monkeypatch.setattr(cli, "app", commands)
    Path("small.toml").write_text(STUDY)
    return search_fakes


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert isinstance(stop.value.code, int)
    return stop.value.code


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of a refusal."""
    capsys.readouterr()
    assert run(*words) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_search_prints_what_was_found_and_where_it_lies(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("search", "small.toml") == 0
    out = capsys.readouterr().out
    assert re.search(r"dense subnet: bbox mAP 0\.8000, mask mAP 0\.7000, 30 ms measured", out)
    assert re.search(r"latency model: \d+\.\d% mean error, \d+\.\d% at most, on 16 held-out", out)
    row = r"(?m)^ *\d+\*? +[\d.,]+/[\d.,]+/[\d.]+,[\d.]+/[\d.]+ +0\.\d+ +0\.\d+ +[\d.]+ +[\d.]+ *$"
    assert re.search(row, out)
    assert re.search(r"best within at most 24 ms: [\d./,]+ +\(bbox mAP", out)
    for name in ("study.db", "finetune.py", "report.html"):
        assert Path("runs/small", name).is_file()
        assert f"runs/small/{name}" in out
    assert "sparsevit finetune runs/small/finetune.py" in out
    assert sorted(os.listdir("runs/small")) == ["artifacts", "finetune.py", "report.html", "study.db"]
    assert "optuna-dashboard sqlite:///runs/small/study.db --artifact-dir runs/small/artifacts" in out


def test_search_leaves_notes_for_optuna_dashboard(capsys: pytest.CaptureFixture[str]) -> None:
    from optuna_dashboard import get_note

    assert run("search", "small.toml") == 0
    study = optuna.load_study(study_name="small", storage="sqlite:///runs/small/study.db")
    assert "sparsevit export small.toml" in get_note(study)
    assert "optuna-dashboard shows" not in capsys.readouterr().out


def test_search_again_says_that_nothing_is_done_again(capsys: pytest.CaptureFixture[str], fakes: Any) -> None:
    run("search", "small.toml")
    fakes.FakeEvaluator.asked.clear()
    capsys.readouterr()
    assert run("search", "small.toml") == 0
    assert "nothing is evaluated again" in capsys.readouterr().out
    assert fakes.FakeEvaluator.asked == []
    assert run("search", "small.toml", "--trials", "12") == 0
    assert "of 12 trials" in capsys.readouterr().out


def test_ctrl_c_keeps_what_is_finished(capsys: pytest.CaptureFixture[str], fakes: Any) -> None:
    def interrupt() -> None:
        if len(fakes.FakeEvaluator.asked) == 5:  # the dense subnet and four trials
            raise KeyboardInterrupt

    fakes.FakeEvaluator.before = interrupt
    assert run("search", "small.toml") == 130
    assert "Traceback" not in "".join(capsys.readouterr())
    run("status", "small.toml")
    assert "4 of 9 trials finished, 1 failed" in capsys.readouterr().out


def test_a_time_limit_ends_a_run_that_can_go_on(capsys: pytest.CaptureFixture[str], fakes: Any) -> None:
    fakes.FakeEvaluator.before = lambda: time.sleep(0.3)
    assert run("search", "small.toml", "--set", "search.time_limit=0.7") == 0
    out = capsys.readouterr().out
    found = re.search(r"search\.time_limit of 1 s is over after (\d) of 9 trials; the same again goes on", out)
    assert found is not None
    assert 1 <= int(found[1]) <= 3
    assert "best within at most 24 ms" in out
    fakes.FakeEvaluator.before = None
    assert run("search", "small.toml", "--set", "search.time_limit=1h") == 0
    out = capsys.readouterr().out
    assert "Pareto front of 9 trials" in out
    assert "time_limit" not in out


def test_status_reads_and_does_not_search(capsys: pytest.CaptureFixture[str], fakes: Any) -> None:
    run("search", "small.toml", "--out", "elsewhere")
    fakes.FakeEvaluator.asked.clear()
    capsys.readouterr()
    assert run("status", "small.toml", "--out", "elsewhere") == 0
    out = capsys.readouterr().out
    assert "study small: 9 of 9 trials finished" in out
    assert "best within at most 24 ms" in out
    assert fakes.FakeEvaluator.asked == []
    assert "start the search first" in refused(capsys, "status", "small.toml")
    assert not Path("runs").exists()


def test_export_by_trial_sparsity_and_latency(capsys: pytest.CaptureFixture[str]) -> None:
    run("search", "small.toml")
    assert run("export", "small.toml", "--trial", "0", "-o", "zero.py") == 0
    text = Path("zero.py").read_text()
    assert "# trial: 0 of 9" in text
    assert "ratios = [[0.8], [0.8], [0.8, 0.8], [" in text
    assert run("export", "small.toml", "--sparsity", "0.1/0.2/0.3,0.4/0.5", "-o", "hand.py") == 0
    assert "given by hand" in Path("hand.py").read_text()
    assert run("export", "small.toml", "--max-latency", "20", "-o", "fast.py") == 0
    measured = re.search(r"latency, measured: ([\d.]+) ms", Path("fast.py").read_text())
    assert measured is not None
    assert float(measured[1]) <= 20
    for name in ("study: small", "target: cpu threads=1", "optuna: 5", "seed: 0"):
        assert f"# {name}" in Path("fast.py").read_text()


def test_another_budget_is_answered_from_what_is_known(capsys: pytest.CaptureFixture[str], fakes: Any) -> None:
    run("search", "small.toml")
    fakes.FakeEvaluator.asked.clear()
    capsys.readouterr()
    for budget in ("20", "20 ms", "66.7%"):  # dense takes 30 ms
        assert run("export", "small.toml", "--max-latency", budget, "-o", "fast.py") == 0
        out = capsys.readouterr().out
        assert re.search(r"best known within 20(\.01)? ms: bbox mAP 0\.\d+, mask mAP 0\.\d+, 1\d\.\d+ ms measured", out)
        assert "more trials would likely help: only " in out
    assert run("export", "small.toml", "--max-latency", "29", "-o", "fast.py") == 0
    assert "likely help: the study searched up to 24 ms, nothing between that and 29 ms" in capsys.readouterr().out
    assert fakes.FakeEvaluator.asked == []


def test_without_an_export_the_choice_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    Path("two_methods.py").write_text(
        "import search_fakes\n"
        "class Evaluator:\n"
        "    def __init__(self, inner): self.backbone, self.accuracy = inner.backbone, inner.accuracy\n"
        "def evaluator(device, dtype): return Evaluator(search_fakes.evaluator(device=device, dtype=dtype))\n"
    )
    plain = ("--set", "supernet.evaluator=two_methods:evaluator")
    run("search", "small.toml", *plain)
    capsys.readouterr()
    assert run("export", "small.toml", "--max-latency", "20", *plain) == 0
    out = capsys.readouterr().out
    assert re.search(r"(?m)^[\d.,/]+\nnote: two_methods:evaluator has no export, so no config is written$", out)
    assert "evaluator has no export" in refused(capsys, "export", "small.toml", "-o", "config.py", *plain)
    assert not Path("config.py").exists()
    sys.modules.pop("two_methods")


def test_mistakes_in_export_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    run("search", "small.toml")
    for words, said in (
        (("--sparsity", "0.35/0/0,0/0"), "ratio 0.35 of 0.35/0/0,0/0 is outside the grid"),
        (("--sparsity", "0/0/0.5,0.2/0"), "decrease inside stage 3"),
        (("--sparsity", "0/0"), "does not fit a backbone with depths"),
        (("--trial", "99"), "no finished trial 99"),
        (("--max-latency", "1"), "no trial of study 'small' takes at most 1 ms"),
        (("--max-latency", "fast"), "--max-latency fast: give milliseconds as a number, or a share"),
        (("--max-latency", "0"), "--max-latency 0: a latency limit is above 0"),
        (("--trial", "1", "--max-latency", "9"), "give one of --trial, --sparsity and --max-latency"),
        (("-o", "/proc/x/finetune.py"), "cannot write to /proc"),
    ):
        assert said in refused(capsys, "export", "small.toml", *words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("absent.toml",), "there is no study file absent.toml"),
        (("small.toml", "--set", "search.trails=3"), "unknown key search.trails; did you mean trials?"),
        (("small.toml", "--set", "supernet.flavor=x"), "unknown key supernet.flavor"),
        (("small.toml", "--set", "search.trials=lots"), "search.trials = 'lots'"),
        (("small.toml", "--set", "supernet.checkpoint=gone.pth"), "no such file"),
        (("small.toml", "--set", "supernet.evaluator=nowhere:factory"), "no module nowhere"),
        (("small.toml", "--set", "supernet.evaluator=search_fakes:nothing"), "no function nothing"),
        (("small.toml", "--set", "latency.min='90%'"), "min 90% is above max 80%"),
        (("small.toml", "--set", "target.device=cuda:77"), "cuda:77 is not there"),
        (("small.toml", "--set", "space.ratios=[0.5, 0.1]"), "increase strictly"),
        (("small.toml", "--set", "storage.url=nosql://x"), "unknown database 'nosql'"),
        (("small.toml", "--set", "storage.url=small.toml"), "not a database URL"),
        (("small.toml", "--set", "storage.url=sqlite:///small.toml"), "is not a SQLite database"),
        (("small.toml", "--out", "/proc/results"), "cannot write to /proc"),
        (("small.toml", "--out", "small.toml/results"), "it is not a folder"),
    ],
)
def test_mistakes_leave_nothing_behind(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str) -> None:
    assert said in refused(capsys, "search", *words)
    assert [path for path in Path().rglob("*") if path.is_file()] == [Path("small.toml")]
    assert Path("small.toml").read_text() == STUDY


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to root")
def test_a_read_only_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    assert f"cannot write to {folder}: permission denied" in refused(
        capsys, "search", "small.toml", "--out", str(folder / "runs")
    )


def test_a_lower_bound_above_the_share(capsys: pytest.CaptureFixture[str], fakes: Any) -> None:
    text = refused(capsys, "search", "small.toml", "--set", "latency.min=29")
    assert "latency.min 29 ms is above latency.max 80%: 29 ms against 24 ms, as the dense subnet takes 30 ms" in text
    assert fakes.FakeEvaluator.asked == []


def test_a_bound_out_of_reach_states_what_is_in_reach(capsys: pytest.CaptureFixture[str], fakes: Any) -> None:
    text = refused(capsys, "search", "small.toml", "--set", "latency.max=5")
    assert "no configuration takes at most 5 ms" in text
    assert re.search(r"within reach are 1\d\.?\d* to 30 ms", text)
    assert fakes.FakeEvaluator.asked == []
    with closing(sqlite3.connect("runs/small/study.db")) as database:
        assert database.execute("SELECT count(*) FROM studies").fetchone() == (0,)
    # What was measured is kept: a bound within reach needs no other minute of measuring.
    assert run("search", "small.toml") == 0
    assert "known, nothing is measured again" in capsys.readouterr().out


def test_another_metric_than_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    text = refused(capsys, "search", "small.toml", "--set", "accuracy.metric=bbox_map")
    assert "'bbox_map' is not among what search_fakes:evaluator gives: bbox_mAP, bbox_mAP_50, segm_mAP" in text


def test_other_settings_are_spelled_out(capsys: pytest.CaptureFixture[str]) -> None:
    run("search", "small.toml")
    text = refused(capsys, "search", "small.toml", "--set", "latency.max=22", "--set", "space.ratios=[0, 0.5]")
    assert "latency.max 80% -> 22 ms" in text
    assert "space.ratios 0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8 -> 0,0.5" in text
