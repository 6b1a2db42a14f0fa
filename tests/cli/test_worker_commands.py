"""`worker`, `stop`, `resume` and `status --watch` as a user types them, also where there is nothing yet."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import sparsevit
from sparsevit.cli import app as cli
from sparsevit.cli import status
from sparsevit.search import load

FAKES = Path(__file__).parents[1] / "search"
STUDY = """
name = "small"
[supernet]
evaluator = "search_fakes:evaluator"
[latency]
max = "80%"
[accuracy]
images = 10
[search]
trials = 8
confirm = 2
[target]
device = "cpu"
threads = 1
"""
SLOW = f"""
import sys, time
sys.path.append({str(FAKES)!r})
from search_fakes import FakeEvaluator

class Slow(FakeEvaluator):
    def accuracy(self, sparsity, **rest):
        time.sleep(0.3)
        return super().accuracy(sparsity, **rest)

def evaluator(*, device, dtype):
    return Slow(None, "builtin", "plain", device, dtype)
"""
SLOWLY = ("--set", "supernet.evaluator=slow_fakes:evaluator", "--set", "search.trials=1000")


@pytest.fixture(autouse=True)
def fakes(search_fakes: ModuleType) -> Iterator[ModuleType]:
    """A folder with a study over a fake supernet, and with a slow one."""
    Path("small.toml").write_text(STUDY)
    Path("slow_fakes.py").write_text(SLOW)
    yield search_fakes
    sys.modules.pop("slow_fakes", None)


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


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What `status` says about the study."""
    capsys.readouterr()
    assert run("status", "small.toml", *words) == 0
    return capsys.readouterr().out


def interrupt(fakes: Any, evaluations: int) -> None:
    """Ctrl-C once so many evaluations were asked for."""

    def before() -> None:
        if len(fakes.FakeEvaluator.asked) == evaluations:
            raise KeyboardInterrupt

    fakes.FakeEvaluator.before = before


def test_a_worker_does_the_trials_and_confirms_nothing(capsys: pytest.CaptureFixture[str], fakes: Any) -> None:
    assert run("worker", "small.toml", "--trials", "5") == 0
    assert [images for _, images in fakes.FakeEvaluator.asked] == [None, *[10] * 5]  # the dense subnet, and trials
    assert "Pareto front" not in capsys.readouterr().out
    assert os.listdir("runs/small") == ["study.db"]
    fakes.FakeEvaluator.asked.clear()
    assert run("worker", "small.toml", "--trials", "5") == 0
    assert fakes.FakeEvaluator.asked == []
    assert "study small: 5 of 5 trials finished\n" in shown(capsys)
    assert run("search", "small.toml", "--trials", "5") == 0
    assert "Pareto front of 5 trials" in capsys.readouterr().out
    assert {images for _, images in fakes.FakeEvaluator.asked} == {None}


def test_sigterm_ends_a_worker_after_the_trial_at_hand(capsys: pytest.CaptureFixture[str], fakes: Any) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def terminate() -> None:
        if len(fakes.FakeEvaluator.asked) == 3:  # the dense subnet and two trials
            os.kill(os.getpid(), signal.SIGTERM)

    fakes.FakeEvaluator.before = terminate
    assert run("worker", "small.toml") == 0
    assert "study small: 3 of 8 trials finished\n" in shown(capsys)
    assert signal.getsignal(signal.SIGTERM) is before


def test_stop_ends_a_worker_elsewhere_and_resume_goes_on(capsys: pytest.CaptureFixture[str], fakes: Any) -> None:
    assert run("worker", "small.toml", *SLOWLY, "--trials", "1") == 0  # measures, which the process below cannot
    package = str(Path(sparsevit.__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-c", "from sparsevit.cli.app import main; main()", "worker", "small.toml", *SLOWLY],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_until(process, lambda: re.search(r"small: (?!1 )\d+ of 1000", shown(capsys)) is not None)
        line = rf"(?m)^worker \S+:{process.pid}: since \d{{4}}-\d\d-\d\d \d\d:\d\d UTC, (at trial \d+|between trials)$"
        assert re.search(line, shown(capsys))
        assert run("stop", "small.toml") == 0
        assert capsys.readouterr().out == (
            "study small: 1 asked to end after the trial at hand; sparsevit resume goes on\n"
        )
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, said
    status = shown(capsys)
    finished = re.search(r"(?m)^study small: (\d+) of 1000 trials finished$", status)
    assert finished is not None
    assert "worker" not in status
    done = int(finished[1])
    evaluator = SLOWLY[:2]
    assert run("worker", "small.toml", *evaluator, "--trials", str(done + 1)) == 0
    capsys.readouterr()
    assert run("resume", "small.toml", *evaluator) == 0
    out = capsys.readouterr().out
    assert f"goes on after {done + 1} finished trials" in out
    assert f"Pareto front of {done + 1} trials" in out


def wait_until(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)


def test_resume_goes_on_to_what_was_asked_for_last(capsys: pytest.CaptureFixture[str], fakes: Any) -> None:
    interrupt(fakes, 4)
    assert run("search", "small.toml", "--trials", "7") == 130
    fakes.FakeEvaluator.before = None
    assert "study small: 3 of 7 trials finished, 1 failed\n" in shown(capsys)
    assert run("resume", "small.toml") == 0
    assert "Pareto front of 7 trials" in capsys.readouterr().out
    assert run("resume", "small.toml", "--workers", "1") == 0  # done already
    assert "Pareto front of 7 trials" in capsys.readouterr().out
    assert run("stop", "small.toml") == 0
    assert capsys.readouterr().out == "study small: nobody works on it; sparsevit resume goes on\n"


def test_status_is_shown_until_the_study_is_done(
    capsys: pytest.CaptureFixture[str], fakes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "WATCH_S", 0.01)
    interrupt(fakes, 4)
    assert run("search", "small.toml") == 130
    fakes.FakeEvaluator.before = None
    loads: list[int] = []
    plain = load.load_results

    def loading(*words: Any, **rest: Any) -> Any:
        loads.append(1)
        if len(loads) == 3:
            assert run("worker", "small.toml") == 0  # elsewhere, meanwhile
        return plain(*words, **rest)

    monkeypatch.setattr(load, "load_results", loading)
    out = shown(capsys, "--watch")
    assert re.findall(r"study small: (\d) of 8 trials finished", out) == ["3", "3", "8"]
    assert re.findall(r"study small: (\d) of 8 trials finished", shown(capsys, "--watch")) == ["8"]


def test_ctrl_c_ends_watching(capsys: pytest.CaptureFixture[str], fakes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "WATCH_S", 60.0)
    interrupt(fakes, 4)
    assert run("search", "small.toml") == 130
    capsys.readouterr()
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    assert run("status", "small.toml", "--watch") == 130
    timer.join()
    captured = capsys.readouterr()
    assert "study small: 3 of 8 trials finished" in captured.out
    assert captured.err == "interrupted\n"


@pytest.mark.parametrize("words", [("status",), ("status", "--watch"), ("stop",), ("resume",)])
def test_a_study_that_does_not_exist_yet(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    command, *options = words
    assert "no database runs/small/study.db: start the search first" in refused(capsys, command, "small.toml", *options)
    assert not Path("runs").exists()
    shared = ("--set", "storage.url=sqlite:///shared.db")
    assert run("worker", "small.toml", "--trials", "1", *shared) == 0
    said = refused(capsys, command, "small.toml", *options, *shared, "--set", "name=other")
    assert said == "error: sqlite:///shared.db holds no study 'other'; there are: small\n"


@pytest.mark.parametrize("command", ["search", "worker", "status", "stop", "resume"])
def test_a_database_that_is_not_there(capsys: pytest.CaptureFixture[str], fakes: Any, command: str) -> None:
    pytest.importorskip("psycopg", reason="the extra postgres is not installed")
    url = "postgresql+psycopg://me:hunter2@127.0.0.1:1/trials"
    start = time.monotonic()
    said = refused(capsys, command, "small.toml", "--set", f"storage.url={url}")
    assert time.monotonic() - start < 20
    assert said.startswith("error: cannot open the database postgresql+psycopg://me:***@127.0.0.1:1/trials: ")
    assert "hunter2" not in said
    assert fakes.FakeEvaluator.asked == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("worker", "absent.toml"), "there is no study file absent.toml"),
        (("stop", "absent.toml"), "there is no study file absent.toml"),
        (("resume", "absent.toml"), "there is no study file absent.toml"),
        (("worker", "small.toml", "--trials", "0"), "'--trials'"),
        (("worker", "small.toml", "--grace", "0"), "'--grace'"),
        (("resume", "small.toml", "--workers", "0"), "'--workers'"),
        (("worker", "small.toml", "--set", "search.workers=none"), "search.workers = 'none'"),
    ],
)
def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str) -> None:
    assert said in refused(capsys, *words)
    assert not Path("runs").exists()


def test_a_worker_of_other_settings_is_refused(capsys: pytest.CaptureFixture[str], fakes: Any) -> None:
    assert run("worker", "small.toml", "--trials", "1") == 0
    fakes.FakeEvaluator.asked.clear()
    assert "latency.max 80% -> 22 ms" in refused(capsys, "worker", "small.toml", "--set", "latency.max=22")
    assert fakes.FakeEvaluator.asked == []
