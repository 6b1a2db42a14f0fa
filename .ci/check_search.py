"""Runs `make search` with few trials in a fresh checkout, as a user would, and checks what it printed and wrote.

Usage: python .ci/check_search.py CHECKOUT. Standard library only; what needs packages runs in the checkout's own .venv.
"""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
import tomllib
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

TRIALS = 8
STUDY = "studies/digits.toml"
TABLES = ("trials", "sparsevit_accuracies", "sparsevit_latencies", "sparsevit_latency_models")
SPARSITY = r"[\d.]+(?:,[\d.]+)*(?:/[\d.]+(?:,[\d.]+)*){3}"
NUMBER = r"\d+(?:\.\d+)?"


@dataclass(frozen=True)
class Checkout:
    root: Path

    @property
    def results(self) -> Path:
        study = tomllib.loads((self.root / STUDY).read_text())
        return self.root / study.get("storage", {}).get("directory", f"runs/{study['name']}")

    @property
    def database(self) -> Path:
        return self.results / "study.db"

    def run(self, *command: str) -> str:
        """Run a command here, pass its output on, and return it."""
        print(f"\n$ {' '.join(command)}", flush=True)
        start = time.monotonic()
        lines = []
        process = subprocess.Popen(command, cwd=self.root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
        check(process.wait() == 0, f"{' '.join(command)} exits with 0, not {process.returncode}")
        print(f"({time.monotonic() - start:.0f} s)", flush=True)
        return "".join(lines)

    def counts(self) -> dict[str, int]:
        """Rows of everything that costs time to find."""
        with closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True)) as database:
            return {table: database.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in TABLES}

    def finished(self) -> int:
        with closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True)) as database:
            return int(database.execute("SELECT count(*) FROM trials WHERE state = 'COMPLETE'").fetchone()[0])


def check(holds: bool, claim: str) -> None:
    if not holds:
        sys.exit(f"failed: {claim}")


def check_printed(output: str, checkout: Checkout) -> None:
    """Dense figures, the model's error, the Pareto table, the best, the places and the next commands."""
    check(
        bool(re.search(rf"(?im)^.*\bdense\b.*{NUMBER}.*ms", output)),
        "the dense subnet's accuracy and latency are printed",
    )
    check(bool(re.search(rf"(?i)latency model.*{NUMBER} ?%", output)), "the latency model's error is printed")
    # trial, configuration, bbox mAP, mask mAP, predicted ms, measured ms
    rows = re.findall(rf"(?m)^ *\d+\*? +{SPARSITY}(?: +{NUMBER}){{4}} *$", output)
    check(bool(rows), "the Pareto table has a confirmed row")
    check(bool(re.search(rf"(?i)best\b.*{SPARSITY}", output)), "the best configuration within the bound is printed")
    for path in (checkout.database, *configs(checkout), *reports(checkout)):
        check(path.name in output, f"the output says where {path.name} lies")
    check("sparsevit finetune" in output, "the next command is printed")


def configs(checkout: Checkout) -> list[Path]:
    return sorted(checkout.results.glob("*.py"))


def reports(checkout: Checkout) -> list[Path]:
    return sorted(checkout.results.glob("*.html"))


def check_written(checkout: Checkout) -> None:
    check(checkout.finished() == TRIALS, f"{TRIALS} trials are finished, not {checkout.finished()}")
    check(len(reports(checkout)) == 1, "there is one report")
    page = reports(checkout)[0].read_text(encoding="utf-8")
    check(
        "Plotly" in page and not re.search(r"<(script|link|img)[^>]+(src|href)=[\"']?https?:", page),
        "it is self-contained",
    )
    check(len(configs(checkout)) == 1, "there is one finetune config")
    accepted = (
        "import sys, sparsevit.openmmlab\n"
        "from mmcv import Config\n"
        "from mmdet.models import build_detector\n"
        "config = Config.fromfile(sys.argv[1])\n"
        "detector = build_detector(config.model)\n"
        "print('sparsity of the exported config:', detector.backbone.sparsity)\n"
    )
    printed = checkout.run(".venv/bin/python", "-W", "ignore", "-c", accepted, str(configs(checkout)[0]))
    check(bool(re.search(SPARSITY, printed)), "mmdet builds the exported config with its sparsity")


def check_resumed(checkout: Checkout) -> None:
    """The same command again pays for nothing, and says so."""
    before = checkout.counts()
    output = checkout.run("make", "search", f"TRIALS={TRIALS}")
    check(checkout.counts() == before, f"nothing is measured or evaluated twice: {before} became {checkout.counts()}")
    check("again" in output, "the second run says that it does nothing again")
    check("environment with" not in output, "the second run installs nothing")


def check_interrupted(checkout: Checkout) -> None:
    """Ctrl-C ends a search with what is finished in the database, and a run after it goes on from there."""
    print("\n$ sparsevit search, interrupted after its next trial", flush=True)
    process = subprocess.Popen(
        [".venv/bin/sparsevit", "search", STUDY, "--trials", str(TRIALS + 100)],
        cwd=checkout.root,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    while checkout.finished() == TRIALS and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    check(process.wait(timeout=60) == 130, f"an interrupted search exits with 130, not {process.returncode}")
    finished = checkout.finished()
    check(TRIALS < finished < TRIALS + 100, "trials finished before Ctrl-C are kept")
    checkout.run(".venv/bin/sparsevit", "search", STUDY, "--trials", str(finished))
    check(checkout.finished() == finished, "the search goes on where it was interrupted")


def main() -> None:
    checkout = Checkout(Path(sys.argv[1]).resolve())
    output = checkout.run("make", "search", f"TRIALS={TRIALS}")
    check_written(checkout)
    check_printed(output, checkout)
    check_resumed(checkout)
    check_interrupted(checkout)
    checkout.run(".venv/bin/sparsevit", "check")
    print("\nthe search does what it says")


if __name__ == "__main__":
    main()
