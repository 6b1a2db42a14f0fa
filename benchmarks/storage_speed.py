"""What a trial costs besides its evaluation: taking it, drawing its configuration, and finishing it, on SQLite.

    python benchmarks/storage_speed.py --trials 100 1000 10000

Prints the mean over the last hundred trials before each count, so that growth shows.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import optuna

from sparsevit.search.candidates import find_candidates
from sparsevit.search.claims import Claims, Nothing
from sparsevit.search.gate import Gate
from sparsevit.search.ledger import Accuracy, Subject
from sparsevit.search.objective import Objective
from sparsevit.search.results import Bounds
from sparsevit.search.samplers import make_sampler
from sparsevit.search.storage import storage_at
from sparsevit.search.worker import Watch
from sparsevit.sparsity import SparsitySpace

WINDOWS = (576, 144, 36, 9)
LAST = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1000])
    counts = sorted(parser.parse_args().trials)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space, bounds = SparsitySpace((2, 2, 6, 2)), Bounds(0.0, 22.0)
    candidates = find_candidates(space, WINDOWS, lambda levels: 30 - levels @ np.full(levels.shape[1], 0.35), bounds)
    gate = Gate(candidates, bounds)
    sampler = make_sampler("nsga2", candidates, population=20, seed=0, accept=gate)
    objective = Objective(sampler, Subject((672, 672), WINDOWS, "", "", "", ""), "accuracy", bounds, gate)
    with tempfile.TemporaryDirectory() as folder, storage_at(f"sqlite:///{Path(folder) / 'study.db'}") as storage:
        optuna.create_study(study_name="speed", storage=storage, directions=["maximize", "minimize"])
        claims = Claims(storage, "speed", sampler, Watch())
        wall, cpu = [], []
        for number in range(1, counts[-1] + 1):
            start, start_cpu = time.perf_counter(), time.process_time()
            taken = claims.take(counts[-1], objective.fill)
            assert not isinstance(taken, Nothing)
            trial, proposal = taken
            accuracy = Accuracy(
                {"accuracy": float(0.8 - 0.01 * candidates.levels_of(np.array([proposal.row])).mean())}, 0
            )
            attributes = objective.outcome(proposal, accuracy, evaluated=True)
            claims.finish(trial, attributes, objective.values(proposal, accuracy))
            wall.append(time.perf_counter() - start)
            cpu.append(time.process_time() - start_cpu)
            if number in counts:
                means = (1000 * float(np.mean(seconds[-LAST:])) for seconds in (wall, cpu))
                print("{:>6} trials: {:.1f} ms a trial, {:.1f} ms of them CPU".format(number, *means), flush=True)


if __name__ == "__main__":
    main()
