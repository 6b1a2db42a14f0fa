"""Accuracies that a search can be judged on without a GPU: a table of real ones, or a made-up surface to tune with.

A table is CSV, gzipped: `configuration,images,<metrics…>,ms`, a row for each configuration; lines with `#` say
where it comes from.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparsevit.errors import UserError
from sparsevit.search.candidates import Candidates, find_candidates
from sparsevit.search.results import Bounds
from sparsevit.sparsity import Sparsity, SparsitySpace, windows_per_stage

SIZE = (448, 448)
TABLE = Path(__file__).parent / "data" / "digits_accuracies.csv.gz"


@dataclass(frozen=True, eq=False)
class Landscape:
    """What is true of every configuration of a benchmark.

    Attributes:
        space: in which samplers propose.
        windows: of each stage.
        known: the configurations whose accuracy is known: those of the table, or all.
        accuracies: theirs, fractions, shape `(len(known),)`.
    """

    space: SparsitySpace
    windows: tuple[int, ...]
    known: Candidates
    accuracies: NDArray[np.float64]

    def bounds(self, share: float) -> Bounds:
        """An upper bound of latency that share of the way from the fastest to the slowest configuration."""
        return Bounds(0.0, float(self.known.ms[0] + share * (self.known.ms[-1] - self.known.ms[0])))

    def within(self, bounds: Bounds) -> Candidates:
        """The known ones that meet the bounds; a sampler of this project is given no others."""
        return find_candidates(self.space, self.windows, self._predict, bounds)

    def _predict(self, levels: NDArray[np.uint8]) -> NDArray[np.float64]:
        rows = self.known.rows(levels)
        return np.where(rows >= 0, self.known.ms[rows], np.inf)


def from_table(path: Path, metric: str) -> Landscape:
    """The configurations of a table, and no others.

    Raises:
        UserError: if there is no such table, it has no such metric, or a row cannot be read.
    """
    try:
        with gzip.open(path, "rt", newline="") as stream:
            rows = list(csv.DictReader(line for line in stream if not line.startswith("#")))
    except FileNotFoundError:
        raise UserError(
            f"there is no table {path}: make it with benchmarks/accuracy_table.py, or try --synthetic"
        ) from None
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    if not rows or not {"configuration", "ms", metric} <= rows[0].keys():
        raise UserError(f"{path} has no rows with the columns configuration, ms and {metric}")
    space, windows = SparsitySpace(), windows_per_stage(SIZE)
    whole = find_candidates(space, windows, lambda levels: np.zeros(len(levels)), Bounds(0.0, 1.0))
    ms, accuracies = np.full(len(whole), np.inf), np.zeros(len(whole))
    for number, row in enumerate(rows, 1):
        try:
            place = whole.row(space.check(Sparsity.parse(row["configuration"])))
            ms[place], accuracies[place] = float(row["ms"]), float(row[metric])
        except (UserError, ValueError, TypeError) as error:
            raise UserError(f"{path}, row {number}: {error}") from None
    known = find_candidates(space, windows, lambda levels: ms[whole.rows(levels)], Bounds(0.0, np.finfo(float).max))
    return Landscape(space, windows, known, accuracies[whole.rows(known.levels)])


def synthetic(seed: int) -> Landscape:
    """A made-up surface: every layer costs accuracy by a curve of its own, pairs of layers more or less than their sum,
    and every configuration has luck of its own. As high as the built-in supernet's at 0, 30 and 60 %; otherwise chance.
    """
    rng = np.random.default_rng([seed, 1])
    space, windows = SparsitySpace(), windows_per_stage(SIZE)
    layers = sum(space.layers)
    shares = rng.dirichlet(np.full(layers, 3.0))
    known = find_candidates(space, windows, lambda levels: _made_up_ms(space, windows, levels, shares), Bounds(0.0, 99))
    x = known.levels / (len(space.grid) - 1)
    weights, powers = rng.dirichlet(np.full(layers, 1.0)), rng.uniform(1.0, 4.0, layers)
    cliffs, heights = rng.integers(3, 9, layers) / 8, rng.random(layers) * (rng.random(layers) < 0.3)
    pairs = np.triu(rng.normal(0, 1.0 / layers, (layers, layers)), 1)
    loss = (weights * x**powers).sum(axis=1) + (weights * heights * (x >= cliffs)).sum(axis=1)
    loss += np.einsum("nl,lm,nm->n", x, pairs * np.sqrt(np.outer(weights, weights)), x)
    middle, high = (loss[known.row(space.uniform(value))] for value in (0.3, 0.6))
    # Through the accuracies of the model card: 0.8926 dense, 0.8605 at 60 %; that at 30 % comes out as it may.
    scale = 0.0321 / max(high, middle, 0.1)
    noise = rng.normal(0, rng.uniform(0.0003, 0.0015), len(known))
    return Landscape(space, windows, known, 0.8926 - scale * loss + noise)


def _made_up_ms(
    space: SparsitySpace, windows: Sequence[int], levels: NDArray[np.uint8], shares: NDArray[np.float64]
) -> NDArray[np.float64]:
    """10 ms dense, of which 3 stay; layers cost what `shares` say, in proportion to the windows they keep."""
    kept = space.kept_table(windows) / np.repeat(windows, space.layers)[:, None]
    costs = np.stack([share * kept[layer][levels[:, layer]] for layer, share in enumerate(shares)])
    total: NDArray[np.float64] = 3.0 + 7.0 * costs.sum(axis=0)
    return total
