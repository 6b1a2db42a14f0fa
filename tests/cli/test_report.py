"""`sparsevit report` on a study in a real database, without any supernet."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.trial import create_trial

from sparsevit.cli.app import main
from sparsevit.latency.results import Timing
from sparsevit.search.ledger import Accuracy, Ledger
from sparsevit.search.objective import OUTCOME
from sparsevit.search.record import StudyRecord, Wishes
from sparsevit.search.storage import open_storage
from sparsevit.search.study import open_study
from sparsevit.sparsity import SparsitySpace

SPACE = SparsitySpace()
RECORD = StudyRecord(
    fingerprint={}, depths=SPACE.depths, ratios=tuple(map(str, SPACE.grid)), size=(448, 448), windows=(256, 64, 16, 4),
    evaluator="e", target="cpu float32 batch=1 448x448 eager backbone", environment="n", backbone="b",
    metric="bbox_mAP", metrics=("bbox_mAP", "segm_mAP"), images=50, min_ms=0.0, max_ms=30.0, dense_ms=40.0,
    held_out=(), provenance={"seed": "3"},
)  # fmt: skip


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study file with a database of three trials: a fast one, a better one that was confirmed, one that both beat."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "tiny.toml"
    file.write_text('name = "tiny"\n[latency]\nmax = 30\n', encoding="utf-8")
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    storage = open_storage("sqlite:///runs/tiny/study.db")
    wishes = Wishes(trials=3, confirm_images=None, seed=3)
    made = open_study(storage, "tiny", RECORD, wishes, optuna.samplers.RandomSampler())
    for level, accuracy, latency in ((6, 0.5, 20.0), (2, 0.75, 28.0), (3, 0.4, 29.0)):
        made.add_trial(
            create_trial(
                params={name: level for name in SPACE.layer_names},
                distributions={name: IntDistribution(0, 8) for name in SPACE.layer_names},
                values=[accuracy, latency],
                user_attrs={
                    OUTCOME: {
                        "accuracy": {"bbox_mAP": accuracy, "segm_mAP": accuracy - 0.1},
                        "seconds": 1.0,
                        "infeasible": 0,
                        "duplicate": 0,
                    }
                },
            )
        )
    ledger = Ledger(storage.engine, RECORD.subject)
    ledger.put_accuracy(SPACE.uniform(0.2), None, Accuracy({"bbox_mAP": 0.7, "segm_mAP": 0.6}, 2.0))
    ledger.put_latency(SPACE.uniform(0.2), Timing(28.5, 28.0, 29.0, samples=9))
    return file


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["report", *words])
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err  # type: ignore[return-value]


def test_the_page_lies_beside_the_database(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, str(study))
    assert (code, out) == (0, "report: runs/tiny/report.html\n")
    text = Path("runs/tiny/report.html").read_text(encoding="utf-8")
    assert "28.50 [28.00, 29.00]" in text
    assert f"sparsevit search {study} --trials 3" in text
    assert RECORD.target in text


def test_csv_is_printed_ready_for_a_pipe(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, str(study), "--format", "csv")
    fast, better = csv.DictReader(io.StringIO(out))
    assert code == 0
    assert (fast["configuration"], fast["confirmed"], fast["bbox_mAP"]) == ("0.6/0.6/0.6,0.6,0.6/0.6", "false", "0.5")
    assert (better["confirmed"], better["bbox_mAP"], better["measured_ms"]) == ("true", "0.7", "28.5")


def test_a_table_goes_to_a_file(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, str(study), "--format", "md", "-o", "front.md")
    assert (code, out) == (0, "table: front.md\n")
    assert "| 0.2/0.2/0.2,0.2,0.2/0.2 | 0.700 | 0.600 | 28.00 | 28.50 [28.00, 29.00] |" in Path("front.md").read_text()


def test_parquet_goes_to_a_file(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert run(capsys, str(study), "--format", "parquet", "-o", "front.parquet")[:2] == (0, "table: front.parquet\n")
    assert parquet.read_table("front.parquet").to_pylist()[1]["measured_ms"] == 28.5


def test_a_page_of_ones_own(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.toml").write_text('title = "Mine"\n[[section]]\nheading = "H"\nfigures = ["progress"]\n')
    assert run(capsys, str(study), "--page", "mine.toml", "-o", "mine.html")[0] == 0
    text = Path("mine.html").read_text(encoding="utf-8")
    assert 'data-figure="progress"' in text
    assert 'data-figure="front"' not in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing.toml"], "no study file"),
        (["tiny.toml", "--out", "elsewhere"], "no database"),
        (["tiny.toml", "--format", "pdf"], "'html', 'md', 'csv', 'parquet'"),
        (["tiny.toml", "--format", "parquet"], "name its file with -o"),
        (["tiny.toml", "--format", "csv", "--page", "mine.toml"], "--page is for --format html"),
        (["tiny.toml", "--page", "nowhere.toml"], "cannot read the page nowhere.toml"),
        (["tiny.toml", "-o", "tiny.toml/report.html"], "cannot write"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(
    study: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    before = sorted(study.parent.rglob("*"))
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert [path for path in sorted(study.parent.rglob("*")) if path not in before] == []


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert "Example: sparsevit report" in " ".join(out.split())
