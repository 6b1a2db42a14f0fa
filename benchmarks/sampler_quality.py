"""How many evaluations each sampler needs, on accuracies that are known: no detector and no GPU takes part.

python benchmarks/sampler_quality.py                    # on the table in benchmarks/data
python benchmarks/sampler_quality.py --synthetic 3      # on made-up surfaces, to tune with; never a result
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import optuna
from numpy.typing import NDArray

from sparsevit.errors import UserError
from sparsevit.search.candidates import Candidates
from sparsevit.search.results import Bounds
from sparsevit.search.samplers import NAMES, SamplerName, make_sampler
from sparsevit.search.samplers.improvement import hypervolume

sys.path.insert(0, str(Path(__file__).parent))
from accuracy_landscape import TABLE, Landscape, from_table, synthetic

STOCK = "stock"
"""Optuna's NSGAIISampler as it is, with the bounds as constraints. Every trial of its is paid for, infeasible ones and
repetitions too, as it does in `study.optimize`."""

LEDGER = "stock+ledger"
"""The same, where only the first evaluation of a feasible configuration is counted."""

SHARE = 0.99
WITHIN = 0.001
"""0.1 points of mAP."""

BOUNDS = (0.75, 0.5, 0.25)
"""Of the way from the fastest to the slowest configuration, so that they suit any device."""


@dataclass(frozen=True)
class Need:
    """Evaluations that one search needed; infinite where the budget did not suffice.

    Attributes:
        volume: until 99 % of the best hypervolume of all that is feasible.
        best: until within 0.1 points of the most accurate feasible configuration.
        seconds: of the sampler and Optuna, for one trial.
    """

    volume: float
    best: float
    seconds: float


@dataclass(frozen=True)
class Task:
    """One search: a sampler on a landscape, within bounds."""

    landscape: Landscape
    sampler: str
    bound: float
    seed: int
    population: int
    budget: int


def solve(task: Task) -> dict[str, Need]:
    """Search until both aims are reached or the budget is spent; by name, as the stock sampler is counted twice."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    landscape = task.landscape
    bounds = landscape.bounds(task.bound)
    feasible = landscape.within(bounds)
    accuracies = landscape.accuracies[landscape.known.rows(feasible.levels)]
    goal = Goal.of(feasible, accuracies, bounds)
    if task.sampler == STOCK:
        names, steps = [STOCK, LEDGER], _stock(task, feasible, bounds)
    else:
        names, steps = [task.sampler], _ours(task, feasible, accuracies)
    needs: dict[str, dict[str, float]] = {name: {} for name in names}
    paid, found, start, trials = [0] * len(names), [], time.perf_counter(), 0
    for row, costs in itertools.islice(steps, task.budget):
        trials += 1
        paid = [before + cost for before, cost in zip(paid, costs, strict=True)]
        if row < 0:
            continue
        found.append(row)
        for aim in goal.reached(np.array(found)):
            for name, so_far in zip(names, paid, strict=True):
                needs[name].setdefault(aim, so_far)
        if len(needs[names[0]]) == 2:
            break
    seconds = (time.perf_counter() - start) / max(trials, 1)
    return {name: Need(one.get("volume", np.inf), one.get("best", np.inf), seconds) for name, one in needs.items()}


@dataclass(frozen=True)
class Goal:
    """What is to be reached among the feasible.

    Attributes:
        ms: of the feasible, shape `(N,)`.
        accuracies: theirs, shape `(N,)`.
        reference: of hypervolumes: the upper bound, and the lowest accuracy within it.
        volume: the hypervolume of all.
    """

    ms: NDArray[np.float64]
    accuracies: NDArray[np.float64]
    reference: tuple[float, float]
    volume: float

    @classmethod
    def of(cls, feasible: Candidates, accuracies: NDArray[np.float64], bounds: Bounds) -> Goal:
        reference = bounds.max_ms, float(accuracies.min())
        return cls(feasible.ms, accuracies, reference, hypervolume(feasible.ms, accuracies, reference))

    def reached(self, rows: NDArray[np.intp]) -> Iterator[str]:
        """Which aims the evaluated rows reach."""
        if self.accuracies[rows].max() >= self.accuracies.max() - WITHIN:
            yield "best"
        if hypervolume(self.ms[rows], self.accuracies[rows], self.reference) >= SHARE * self.volume:
            yield "volume"


Steps = Iterator[tuple[int, tuple[int, ...]]]
"""The feasible row that each trial evaluated, -1 for none, and what it cost."""


def _ours(task: Task, feasible: Candidates, accuracies: NDArray[np.float64]) -> Steps:
    sampler = make_sampler(cast(SamplerName, task.sampler), feasible, population=task.population, seed=task.seed)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    for _ in range(len(feasible)):
        trial = study.ask()
        levels = [trial.suggest_int(name, 0, len(feasible.space.grid) - 1) for name in feasible.space.layer_names]
        row = int(feasible.rows([levels])[0])
        yield row, (1,)
        study.tell(trial, [float(accuracies[row]), float(feasible.ms[row])])


def _stock(task: Task, feasible: Candidates, bounds: Bounds) -> Steps:
    known, names = task.landscape.known, feasible.space.layer_names
    sampler = optuna.samplers.NSGAIISampler(seed=task.seed)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    asked: set[tuple[int, ...]] = set()
    paid: set[int] = set()
    while True:
        trial = study.ask()
        levels = np.array([[trial.suggest_int(name, 0, len(feasible.space.grid) - 1) for name in names]])
        row = int(known.rows(levels)[0])
        if row < 0:
            row = int(known.nearest(levels[0], np.arange(len(known)))[0])
        genome = tuple(known.canonical(levels)[0].tolist())
        place = int(feasible.rows(known.levels_of(np.array([row])))[0])
        # Two configurations that the table has one and the same neighbour for are no repetition of the sampler's.
        by_the_table = row in paid and genome not in asked
        yield place, (int(not by_the_table), int(place >= 0 and row not in paid))
        asked.add(genome)
        paid.add(row)
        ms = float(known.ms[row])
        trial.set_constraint("latency.max", ms / bounds.max_ms - 1)
        study.tell(trial, [float(task.landscape.accuracies[row]), ms])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=TABLE, help="real accuracies")
    parser.add_argument("--metric", default="bbox_mAP", help="column of the table")
    parser.add_argument("--synthetic", type=int, metavar="N", help="N made-up surfaces in place of the table")
    parser.add_argument(
        "--first-surface", type=int, default=0, metavar="SEED", help="seed of the first made-up surface"
    )
    parser.add_argument("--samplers", nargs="+", default=[*NAMES, STOCK], choices=[*NAMES, STOCK])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--bounds", type=float, nargs="+", default=BOUNDS, help="shares of the band of latencies")
    parser.add_argument("--population", type=int, default=20, help="of nsga2; the others have none or their own")
    parser.add_argument("--budget", type=int, default=2000, help="evaluations before a search is given up")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    if options.synthetic:
        print("NOT A RESULT: made-up surfaces, to tune samplers with")
        landscapes = [synthetic(options.first_surface + number) for number in range(options.synthetic)]
    else:
        try:
            landscapes = [from_table(options.table, options.metric)]
        except UserError as error:
            sys.exit(f"error: {error}")
    needs: dict[str, dict[float, list[Need]]] = {}
    for sampler in options.samplers:
        tasks = [
            Task(landscape, sampler, bound, seed, options.population, options.budget)
            for bound in options.bounds
            for landscape in landscapes
            for seed in range(options.seeds)
        ]
        for task, solved in zip(tasks, _solved(tasks, options.processes), strict=True):
            for name, need in solved.items():
                needs.setdefault(name, {}).setdefault(task.bound, []).append(need)
        for name in (STOCK, LEDGER) if sampler == STOCK else (sampler,):
            print_rows(name, needs[name], options.budget)
    print_ratios(needs, options.budget)


def _solved(tasks: list[Task], processes: int) -> Iterator[dict[str, Need]]:
    if processes == 1:
        yield from map(solve, tasks)
        return
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(solve, tasks)


AIMS: dict[str, Callable[[Need], float]] = {
    "99 % of the hypervolume": lambda need: need.volume,
    "within 0.1 points": lambda need: need.best,
}


def print_rows(name: str, needs: dict[float, list[Need]], budget: int) -> None:
    """For each bound: median [10 % to 90 % quantile] of evaluations, and how many searches got there."""
    for bound, all_of in needs.items():
        cells = []
        for aim, of in AIMS.items():
            counts = np.array([of(one) for one in all_of])
            low, median, high = (_shown(value, budget) for value in quantiles(counts))
            cells.append(f"{aim} {median:>6} [{low} to {high}], {np.isfinite(counts).mean():4.0%} reached")
        ms = 1000 * np.mean([one.seconds for one in all_of])
        print(f"{name:13} max {bound:4.0%}  {'   '.join(cells)}   {ms:6.1f} ms a trial", flush=True)


def quantiles(counts: NDArray[np.float64]) -> list[float]:
    """At 10, 50 and 90 %, among the counts themselves, as some are infinite."""
    return [float(value) for value in np.quantile(counts, (0.1, 0.5, 0.9), method="higher")]


def _shown(value: float, budget: int) -> str:
    return f">{budget}" if np.isinf(value) else f"{value:.0f}"


def print_ratios(needs: dict[str, dict[float, list[Need]]], budget: int) -> None:
    """Evaluations of each sampler as a share of those of `paper` and of the stock sampler."""
    print("\nmedian evaluations as a share of others', geometric mean over bounds; a search given up counts its budget")
    for other in ("paper", STOCK, LEDGER):
        for aim, of in AIMS.items() if other in needs else ():
            shares = {name: np.exp(_log_medians(one, of, budget) - _log_medians(needs[other], of, budget))
                      for name, one in needs.items() if name != other}  # fmt: skip
            print(f"  of {other:13} {aim:24} {'  '.join(f'{name} {share:.2f}' for name, share in shares.items())}")


def _log_medians(needs: dict[float, list[Need]], of: Callable[[Need], float], budget: int) -> float:
    medians = [min(quantiles(np.array([of(one) for one in all_of]))[1], budget) for all_of in needs.values()]
    return float(np.log(medians).mean())


if __name__ == "__main__":
    main()
