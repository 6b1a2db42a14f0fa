"""Time and memory of predicting, counting and searching whole spaces: Swin-T's 120,285 and Swin-B's 17.7 million.

    python benchmarks/latency_spaces.py

Each task runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from sparsevit.latency.additive import Terms
from sparsevit.latency.bottleneck import slower
from sparsevit.latency.whole import count_within, numbers_within, predict_all, reachable
from sparsevit.search.candidates import find_candidates
from sparsevit.search.results import Bounds
from sparsevit.sparsity import SparsitySpace, windows_per_stage

SPACES = {"Swin-T": (2, 2, 6, 2), "Swin-B": (2, 2, 18, 2)}
SIZE = (672, 672)
MIDDLE = (3.0, 3.2)
"""ms, of 4 dense; many configurations lie between."""


def main() -> None:
    if len(sys.argv) > 1:
        run(sys.argv[1], sys.argv[2])
        return
    for space in SPACES:
        for task in TASKS:
            subprocess.run([sys.executable, __file__, space, task], check=True)


def run(name: str, task: str) -> None:
    """One task, timed; prints a line."""
    space = SparsitySpace(SPACES[name])
    space.stage_levels  # noqa: B018 - made once per space, not per task
    terms = _terms(space)
    start = time.perf_counter()
    found = TASKS[task](space, terms)
    seconds = time.perf_counter() - start
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{name:7} {len(space):>11,}  {task:34} {seconds * 1000:9.1f} ms  peak {peak_mb:6.0f} MB  {found}", flush=True
    )


def _terms(space: SparsitySpace) -> tuple[Terms, ...]:
    """Of a device that takes 4 ms dense and about 2 at the sparsest."""
    rng = np.random.default_rng(0)
    layers = sum(space.layers)
    cells = -np.sort(rng.random((layers, len(space.grid))), axis=1) * 2 / layers
    cells[:, 0] = 0
    return (Terms(4.0, tuple(map(tuple, cells.tolist())), ((0.0,) * len(space.grid),) * len(space.layers)),)


def _candidates(space: SparsitySpace, terms: tuple[Terms, ...]) -> str:
    windows = windows_per_stage(SIZE)
    return f"{len(find_candidates(space, windows, lambda levels: slower(space, terms, levels), Bounds(0, 99))):,} found"


TASKS: dict[str, Callable[[SparsitySpace, tuple[Terms, ...]], str]] = {
    "predict all": lambda space, terms: f"{predict_all(space, terms).min():.3f} ms at least",
    "count within bounds": lambda space, terms: f"{count_within(space, terms, *MIDDLE):,} found",
    "list within bounds": lambda space, terms: f"{len(numbers_within(space, terms, *MIDDLE)[0]):,} found",
    "reachable range": lambda space, terms: "{:.3f} to {:.3f} ms".format(*reachable(space, terms)),
    "keep other windows at 672, at 448": lambda space, _: " and ".join(
        f"{space.count_distinct(windows_per_stage((side, side))):,}" for side in (672, 448)
    ),
    "candidates of a search, no bounds": _candidates,
}

if __name__ == "__main__":
    main()
