"""Kills searches at random moments, workers and parents alike, until so many are killed, and counts what went wrong.

    python benchmarks/faults.py --kills 200

Searches of a made-up supernet run as `sparsevit search` in processes of their own, half of them on SQLite and half on a
PostgreSQL server that is started for it. Whatever is killed is started again until the search is done; the server is
killed a few times too. Most searches have several workers; of those with one, the outcome must be that of the same
search without a kill. Prints a table; exits with 1 if anything in it is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import optuna
from faults_counts import Counts, Snapshot, lost, print_table, snapshot
from faults_search import DATABASE, IMAGES, LOG, true_ms
from private_postgres import Server, missing, private_postgres

from sparsevit.search.load import load_results
from sparsevit.search.results import StudyResults
from sparsevit.search.storage import storage_at
from sparsevit.search.worker import workers_of

HERE = Path(__file__).parent
PARENT_SHARE, ALL_SHARE = 0.2, 0.1
"""How often the parent is killed instead of one of its workers, and how often all of them at once."""

STUCK_S = 300
"""A search that does nothing for so long is not going to."""

STUDY = """
name = "{name}"
[supernet]
evaluator = "faults_search:make"
[latency]
max = "80%"
[accuracy]
metric = "accuracy"
images = {images}
[search]
trials = {trials}
population = 10
seed = {seed}
confirm = 3
[target]
device = "cpu"
threads = 1
size = [448, 448]
[storage]
url = "{url}"
"""


@dataclass
class Search:
    """One search in a folder of its own, which `run` brings to its end however often it is killed."""

    name: str
    url: str
    folder: Path
    trials: int
    seed: int
    workers: int
    counts: Counts
    random: random.Random
    server: Server | None = None
    killed: list[tuple[int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        text = STUDY.format(name=self.name, url=self.url, trials=self.trials, seed=self.seed, images=IMAGES)
        (self.folder / "study.toml").write_text(text)

    def run(self, kills: int, restarts: int = 0) -> int:
        """Go on until it is done, and kill so many processes of it meanwhile, or fewer; how many were killed."""
        before = Snapshot()
        while True:
            with self._parent() as parent:
                while parent.poll() is None and self._works(parent):
                    now = snapshot(self.url, self.name)
                    self.counts.accuracies_lost += lost(before.accuracies, now.accuracies)
                    self.counts.trials_lost += lost(before.trials, now.trials)
                    before = now
                    if restarts and self.server is not None and self.random.random() < 0.1:
                        restarts -= 1
                        self.counts.servers_killed += 1
                        self.server.stop("immediate")
                        time.sleep(self.random.random())
                        self.server.start()
                    elif len(self.killed) < kills:
                        self._kill(parent.pid, kills - len(self.killed))
                if parent.returncode == 0:
                    self._check(before)
                    said = f"{self.name}: {len(self.killed)} killed, {self.counts.wrong} wrong so far"
                    print(said, file=sys.stderr, flush=True)
                    return len(self.killed)
                if parent.returncode != -signal.SIGKILL:
                    said = (self.folder / "parent.out").read_text(errors="replace").strip().splitlines()
                    print(f"{self.name}: the search ended with {parent.returncode}: {said[-1:]}", flush=True)
                    self.counts.searches_that_failed += 1
                    return len(self.killed)

    @contextmanager
    def _parent(self) -> Iterator[subprocess.Popen[bytes]]:
        words = ["search", "study.toml", "--out", "results", "--workers", str(self.workers)]
        with (self.folder / "parent.out").open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, str(HERE / "faults_search.py"), *words],
                cwd=self.folder,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, sys.path)]),
                    "OMP_NUM_THREADS": "1",
                    LOG: str(self.folder / "evaluations.jsonl"),
                    DATABASE: self.url,
                },
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

    def _works(self, parent: subprocess.Popen[bytes]) -> bool:
        """Wait until something was evaluated, and for a random while more; whether the search still goes on then."""
        size, end = self._log_size(), time.monotonic() + STUCK_S
        while self._log_size() == size:
            if parent.poll() is not None:
                return False
            if time.monotonic() > end:
                raise RuntimeError(f"{self.name}: nothing happens for {STUCK_S} s; see {self.folder}")
            time.sleep(0.01)
        time.sleep(self.random.random() ** 2)
        return parent.poll() is None

    def _working(self) -> set[int]:
        """Processes that have evaluated: starting takes them longer than all that they are killed for."""
        lines = (self.folder / "evaluations.jsonl").read_text().splitlines()
        return {json.loads(line)["process"] for line in lines}

    def _log_size(self) -> int:
        log = self.folder / "evaluations.jsonl"
        return log.stat().st_size if log.exists() else 0

    def _kill(self, parent: int, most: int) -> None:
        workers, drawn = children(parent), self.random.random()
        if len(workers) < most and drawn < ALL_SHARE:
            chosen = [parent, *workers]
        elif not workers or drawn < ALL_SHARE + PARENT_SHARE:
            chosen = [parent]
        else:
            chosen = [self.random.choice([one for one in workers if one in self._working()] or workers)]
        for process in chosen:
            self.killed.append((process, time.monotonic()))  # before: others are quick to see that it is dead
            os.kill(process, signal.SIGKILL)
        self.counts.parents_killed += parent in chosen
        self.counts.workers_killed += len(set(chosen) - {parent})
        if parent in chosen:
            os.waitid(os.P_PID, parent, os.WEXITED | os.WNOWAIT)

    def _check(self, before: Snapshot) -> None:
        """Count what is wrong at the end of a search."""
        counts = self.counts
        end = snapshot(self.url, self.name)
        counts.accuracies_lost += lost(before.accuracies, end.accuracies)
        counts.trials_lost += lost(before.trials, end.trials)
        with storage_at(self.url) as storage:
            trials = optuna.load_study(study_name=self.name, storage=storage).get_trials(deepcopy=False)
            counts.workers_left_listed += len(workers_of(storage.engine, self.name))
        states = Counter(one.state.name for one in trials)
        counts.searches += 1
        counts.trials_asked += self.trials
        counts.trials_complete += states["COMPLETE"]
        counts.trials_failed += states["FAIL"]
        counts.trials_too_many_or_few += abs(states["COMPLETE"] - self.trials)
        counts.trials_left_running += states["RUNNING"] + states["WAITING"]
        counts.trials_without_constraints += sum(not one.system_attrs.get("constraints") for one in trials)
        results = self.results()
        configurations = [str(one.sparsity) for one in results.trials]
        counts.trials_of_one_configuration += len(configurations) - len(set(configurations))
        known = {sparsity for (_, images, _, sparsity) in end.accuracies if images == IMAGES}
        counts.accuracies_lost += len(set(configurations) - known)
        for one in results.trials:
            over = true_ms(one.sparsity) > results.bounds.max_ms * (1 + 1e-6)
            counts.infeasible_seen_as_feasible += over and one.feasible
        counts.files_left_behind += len([path for path in self.folder.rglob("*") if path.suffix == ".part"])
        self._check_evaluations()

    def _check_evaluations(self) -> None:
        lines = [json.loads(line) for line in (self.folder / "evaluations.jsonl").read_text().splitlines()]
        killed = dict(self.killed)
        open_at: dict[int, tuple[str, float]] = {}  # what each process is at, and since when
        spans: dict[str, list[tuple[float, float, int]]] = {}
        for line in lines:
            process, key = line["process"], f"{line['sparsity']} on {line['images']}"
            if line["what"] == "start":
                self.counts.evaluations += 1
                self.counts.paid_for_though_known += line["known"]
                open_at[process] = key, line["at"]
            else:
                _, since = open_at.pop(process)
                spans.setdefault(key, []).append((since, line["at"], process))
        for process, (key, since) in open_at.items():
            self.counts.evaluations_cut_short += 1
            if process in killed:
                spans.setdefault(key, []).append((since, killed[process], process))
            else:
                self.counts.wasted_without_a_kill += 1
        for found in spans.values():
            found.sort()
            for (_, end, process), (start, _, _) in pairwise(found):
                self.counts.paid_for_twice_at_once += start < end
                self.counts.wasted_without_a_kill += process not in killed

    def results(self) -> StudyResults:
        return load_results(self.url, self.name)


def children(process: int) -> list[int]:
    try:
        return [int(one) for one in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except FileNotFoundError:
        return []


def kill_searches(
    counts: Counts,
    folder: Path,
    kills: int,
    restarts: int,
    workers: int,
    seed: int,
    url: Callable[[Path], str],
    server: Server | None,
) -> None:
    """Seven in ten kills go to searches with several workers, the others to searches with one."""
    chance = random.Random(seed)
    several = kills * 7 // 10
    number = 0

    def left(of: int) -> int:
        return of - counts.workers_killed - counts.parents_killed

    while left(several) > 0:
        number += 1
        name = f"several-{number}"
        place = folder / name
        found = Search(name, url(place), place, 150, seed + number, workers, counts, chance, server)
        found.run(min(24, left(several)), restarts)
        restarts = 0
    while left(kills) > 0:
        number += 1
        fronts = []
        name = f"one-{number}"
        for kind, most in (("unkilled", 0), ("killed", min(8, left(kills)))):
            place = folder / f"{name}-{kind}"
            one = Search(f"{name}-{kind}", url(place), place, 60, seed + number, 1, counts, chance, server)
            one.run(most)
            results = one.results()
            searched = [(str(trial.sparsity), trial.accuracy, trial.predicted_ms) for trial in results.trials]
            fronts.append((searched, [str(trial.sparsity) for trial in results.front]))
        counts.same_as_unkilled += fronts[0] == fronts[1]
        counts.other_than_unkilled += fronts[0] != fronts[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="processes to kill, half of them on each database")
    parser.add_argument("--restarts", type=int, default=5, help="times that PostgreSQL is killed too")
    parser.add_argument("--workers", type=int, default=3, help="of a search that has several")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="an empty folder to keep studies and logs in")
    chosen = parser.parse_args()
    why = missing()
    if why is not None:
        sys.exit(f"error: {why}: this needs a PostgreSQL server's binaries and psycopg")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    start = time.monotonic()
    found = {"SQLite": Counts(), "PostgreSQL": Counts()}
    finished = False
    try:
        with tempfile.TemporaryDirectory() as temporary, private_postgres() as server:
            kill_on_both(found, chosen, chosen.keep or Path(temporary), server)
        finished = True
    except KeyboardInterrupt:
        print("interrupted: this was counted until then", file=sys.stderr)
    finally:
        print_table(found, time.monotonic() - start)
    sys.exit(not finished or any(counts.wrong for counts in found.values()))


def kill_on_both(found: dict[str, Counts], chosen: argparse.Namespace, folder: Path, server: Server) -> None:
    def sqlite(place: Path) -> str:
        return f"sqlite:///{(place / 'results' / 'study.db').absolute()}"

    def postgresql(place: Path) -> str:
        return server.database(place.name)

    half, workers, seed = chosen.kills // 2, chosen.workers, chosen.seed
    kill_searches(found["SQLite"], folder / "sqlite", half, 0, workers, seed, sqlite, None)
    kill_searches(
        found["PostgreSQL"],
        folder / "postgresql",
        chosen.kills - half,
        chosen.restarts,
        workers,
        seed + 1000,
        postgresql,
        server,
    )


if __name__ == "__main__":
    main()
