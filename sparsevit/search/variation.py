"""Children of parents: binary tournament, uniform crossover, mutation. Pure functions on arrays of levels.

Legend: P parents, M children, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

CROSSOVER = 0.9


def children(
    parents: NDArray[np.intp],
    losses: NDArray[np.float64],
    choices: Sequence[NDArray[np.intp]],
    count: int,
    rng: np.random.Generator,
) -> NDArray[np.intp]:
    """Levels of `count` children, shape `(count, L)`; not yet sorted inside stages, nor checked.

    Args:
        parents: levels, shape `(P, L)`.
        losses: objectives to minimise, shape `(P, objectives)`.
        choices: the levels that each layer may take, increasing.
        count: how many.
        rng: advanced by the same number of draws whatever the parents are.
    """
    mothers, fathers = (parents[_tournament(losses, count, rng)] for _ in range(2))
    crossed = rng.random((count, 1)) < CROSSOVER
    from_father = crossed & (rng.random(mothers.shape) < 0.5)
    return mutate(np.where(from_father, fathers, mothers), choices, rng)


def mutate(levels: NDArray[np.intp], choices: Sequence[NDArray[np.intp]], rng: np.random.Generator) -> NDArray[np.intp]:
    """Change one layer of each row on average, half of the time by one step and half of the time to any level.

    Steps refine what is good already, as accuracy and latency change little with them; leaps keep all within reach.

    Args:
        levels: shape `(M, L)`, every entry among its layer's choices.
        choices: the levels that each layer may take, increasing.
        rng: source of randomness.
    """
    layers = levels.shape[1]
    changed = rng.random(levels.shape) < 1 / layers
    leap = rng.random(levels.shape) < 0.5
    step = rng.choice([-1, 1], levels.shape)
    anywhere = rng.random(levels.shape)
    result = levels.copy()
    for layer, allowed in enumerate(choices):
        place = np.searchsorted(allowed, levels[:, layer])
        stepped = np.clip(place + step[:, layer], 0, len(allowed) - 1)
        leapt = (anywhere[:, layer] * len(allowed)).astype(np.intp)
        place = np.where(changed[:, layer], np.where(leap[:, layer], leapt, stepped), place)
        result[:, layer] = allowed[place]
    return result


def _tournament(losses: NDArray[np.float64], count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Of two random parents the one that dominates, the second if none does. Shape `(count,)`."""
    first, second = rng.integers(len(losses), size=(2, count))
    dominates = (losses[first] <= losses[second]).all(axis=1) & (losses[first] < losses[second]).any(axis=1)
    winners: NDArray[np.intp] = np.where(dominates, first, second)
    return winners
