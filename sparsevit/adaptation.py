"""Sparsity-Aware Adaptation: which sparsity each training iteration gets, so that one set of weights serves all."""

from __future__ import annotations

import random
from dataclasses import dataclass

from sparsevit.sparsity import Sparsity, SparsitySpace


@dataclass(frozen=True)
class SparsitySchedule:
    """A fresh random sparsity for every iteration; a function of seed and iteration alone.

    Hence every rank draws the same without talking to the others, and a resumed run goes on as if it never stopped.
    """

    space: SparsitySpace
    seed: int = 0

    def __call__(self, iteration: int) -> Sparsity:
        return self.space.sample(random.Random(f"{self.seed}/{iteration}"))
