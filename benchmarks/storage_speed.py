"""What a trial costs besides its evaluation, on SQLite: taking it, drawing its configuration, the ledger, finishing it.

    python benchmarks/storage_speed.py --trials 100 1000 10000

Prints means over the last fifty trials before each count, so that growth shows. What the sampler computes is told
apart from Optuna and the database.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray

from sparsevit.search.candidates import find_candidates
from sparsevit.search.claims import Claims, Nothing
from sparsevit.search.gate import Gate
from sparsevit.search.ledger import Ledger, Subject
from sparsevit.search.objective import Objective, PaidAccuracy
from sparsevit.search.results import Bounds
from sparsevit.search.samplers import NAMES, make_sampler
from sparsevit.search.samplers.base import Draw, Moment
from sparsevit.search.storage import storage_at
from sparsevit.search.worker import Watch
from sparsevit.sparsity import Sparsity, SparsitySpace

WINDOWS = (576, 144, 36, 9)
LAST = 50


class Free:
    """An evaluator that takes no time: all it gives is an accuracy."""

    def accuracy(self, sparsity: Sparsity, **_: Any) -> Mapping[str, float]:
        return {"accuracy": 0.8 - 0.1 * float(np.mean(np.concatenate(sparsity.floats)))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--sampler", choices=NAMES, default="nsga2")
    args = parser.parse_args()
    counts = sorted(args.trials)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space, bounds = SparsitySpace((2, 2, 6, 2)), Bounds(0.0, 22.0)
    candidates = find_candidates(space, WINDOWS, lambda levels: 30 - levels @ np.full(levels.shape[1], 0.35), bounds)
    gate = Gate(candidates, bounds)
    sampler = make_sampler(args.sampler, candidates, population=20, seed=0, accept=gate)
    propose, drawn = sampler.propose, np.zeros(2)

    def clocked(moment: Moment) -> tuple[int, Draw]:
        start = clocks()
        try:
            return propose(moment)
        finally:
            drawn[:] += clocks() - start

    sampler.propose = clocked  # type: ignore[method-assign]
    subject = Subject((672, 672), WINDOWS, "", "", "", "")
    objective = Objective(sampler, subject, "accuracy", bounds, gate)
    with tempfile.TemporaryDirectory() as folder, storage_at(f"sqlite:///{Path(folder) / 'study.db'}") as storage:
        optuna.create_study(study_name="speed", storage=storage, directions=["maximize", "minimize"])
        claims = Claims(storage, "speed", sampler, Watch())
        judge = PaidAccuracy(Free(), Ledger(storage.engine, subject))  # type: ignore[arg-type]
        costs = []
        for number in range(1, counts[-1] + 1):
            start = clocks()
            drawn[:] = 0
            taken = claims.take(counts[-1], objective.fill)
            assert not isinstance(taken, Nothing)
            trial, proposal = taken
            accuracy = judge(proposal.sparsity, 500)
            attributes = objective.outcome(proposal, accuracy, evaluated=True)
            claims.finish(trial, attributes, objective.values(proposal, accuracy))
            costs.append(np.stack([clocks() - start - drawn, drawn]))
            if number in counts:
                (wall, cpu), (sampler_wall, sampler_cpu) = 1000 * np.mean(costs[-LAST:], axis=0)
                print(
                    f"{number:>6} trials: {wall:.1f} ms each for Optuna and the database ({cpu:.1f} ms of CPU time), "
                    f"{sampler_wall:.1f} ms for the sampler ({sampler_cpu:.1f} ms)",
                    flush=True,
                )


def clocks() -> NDArray[np.float64]:
    """Seconds: by the clock on the wall, and of this process's CPU time."""
    return np.array([time.perf_counter(), time.process_time()])


if __name__ == "__main__":
    main()
