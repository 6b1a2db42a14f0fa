"""`search --dry-run`: what it prints is the study itself, what it says is so, and it leaves nothing behind."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

from sparsevit.cli import app as cli
from sparsevit.search.load import load_results
from sparsevit.search.preview import Seconds, Work, seconds_of
from sparsevit.search.resolved import resolved_lines
from sparsevit.search.spec import StudySpec

BASE = """
[supernet]
evaluator = "search_fakes:evaluator"
[accuracy]
images = 10
confirm_images = 40
[search]
trials = 9
population = 5
confirm = 4
[target]
device = "cpu"
threads = 1
"""
STUDY = 'extends = "base.toml"\nname = "small"\n[latency]\nmax = "80%"\n'


@pytest.fixture(autouse=True)
def fakes(search_fakes: ModuleType) -> ModuleType:
    """A study over a fake supernet, in two files."""
    Path("base.toml").write_text(BASE)
    Path("small.toml").write_text(STUDY)
    return search_fakes


def run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main(["search", "small.toml", *words])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_before_anything_is_known(capsys: pytest.CaptureFixture[str], fakes: ModuleType) -> None:
    out = run(capsys, "--dry-run", "--set", "space.layers.s1=0.8", "--trials", "30")
    assert re.search(r"(?m)^max = \"80%\" +# small\.toml$", out)
    assert re.search(r"(?m)^images = 10 +# base\.toml$", out)
    assert re.search(r"(?m)^trials = 30 +# --set$", out)
    assert re.search(r"(?m)^seed = 0 +# default$", out)
    assert "space     3,645 configurations of 32,805, as space.layers says; " in out
    assert "how many is not known: the database has no latency model of this target" in out
    assert "duration  not known before such images were judged once" in out
    assert "latency model: about 60 s" in out
    assert fakes.FakeEvaluator.asked == []
    assert sorted(path.name for path in Path().iterdir()) == ["base.toml", "small.toml"]


def test_what_is_printed_is_the_study(capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "latency.min=3.25",
        "space.layers.s3.1=[0, 0.3]",
        'supernet.flavour="a \\"b\\" # c"',
        "accuracy.images=all",
    ]
    out = run(capsys, "--dry-run", *(word for one in words for word in ("--set", one)))
    Path("printed.toml").write_text(out)
    assert StudySpec.load("printed.toml") == StudySpec.load("small.toml", words)


def test_passwords_are_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PW", "hunter2")
    for url in ("postgresql://me:${PW}@h/d", "postgresql://me:hunter2@h/d"):
        text = "\n".join(resolved_lines(StudySpec.load("small.toml", [f"storage.url={url}"])))
        assert "hunter2" not in text
        assert "url = " in text


def test_after_a_search_all_is_known(capsys: pytest.CaptureFixture[str], fakes: ModuleType) -> None:
    run(capsys)
    fakes.FakeEvaluator.asked.clear()
    before = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
    out = run(capsys, "--dry-run", "--trials", "20")
    assert "study     goes on after 9 finished trials" in out
    share = re.search(r"feasible  ([\d,]+) of them \((\d+\.\d)%\) take at most 24 ms", out)
    assert share is not None
    distinct = re.search(r"; ([\d,]+) differ", out)
    assert distinct is not None
    feasible, every = (int(one[1].replace(",", "")) for one in (share, distinct))
    assert feasible / every == pytest.approx(float(share[2]) / 100, abs=1e-3)
    assert "11 trials: " in out
    assert re.search(r"duration  about \d+ s", out)
    out = run(capsys, "--dry-run", "--trials", "1000000", "--set", "search.time_limit=2h")
    assert re.search(r"trials, for at most 2 h 0 min: ", out)
    assert fakes.FakeEvaluator.asked == []
    assert before == {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
    assert len(load_results(StudySpec.load("small.toml")).trials) == 9


def test_what_a_search_would_refuse_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys)
    for words, said in (
        (("--set", "latency.max=70%"), "latency.max 80% -> 70% (stored -> asked)"),
        (("--set", "space.layers.s1=0.8"), "space.layers none -> s1=0.8"),
        (("--set", "space.layers.s9=0.8"), "the backbone has no such layer; it has s1, s2, s3.1, s3.2, s4"),
        (("--set", "storage.url=nosql://x"), "unknown database"),
        (("--set", "supernet.flavor=x"), "unknown key supernet.flavor"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(["search", "small.toml", "--dry-run", *words])
        assert stop.value.code == 2
        err = capsys.readouterr().err
        assert said in err
        assert err.count("\n") == 1


def test_work_is_stopped_at_its_limit() -> None:
    assert Work("trials", 10, 3.0).total == 30
    assert Work("trials", 10, Seconds(3.0, 1), 12.0).total == 12
    assert Work("trials", 10, None, 12.0).total == 12
    assert Work("trials", 10, None).total is None
    assert Work("trials", 0, None).total == 0


def test_seconds_are_scaled_where_they_must_be() -> None:
    known = {10: [1.0, 2.0, 30.0], 0: [50.0]}
    assert seconds_of(known, 10) == Seconds(2.0, 3)
    assert seconds_of(known, None) == Seconds(50.0, 1)
    assert seconds_of(known, 40) == Seconds(8.0, 3, 10)
    assert seconds_of({0: [50.0]}, 40) is None
    assert seconds_of({10: [1.0]}, None) is None
