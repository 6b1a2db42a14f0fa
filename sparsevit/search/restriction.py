"""Which ratios each layer may take, where a study narrows the space: layers that are fixed, or have grids of their own.

The space itself stays whole: a latency model is fitted on all of it, once for every restriction.
Legend: N choices, L layers of a stage.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray

from sparsevit.errors import UserError
from sparsevit.sparsity import SparsitySpace

LAYER = re.compile(r"s[1-9]\d*(\.[1-9]\d*)?")
"""Name of a layer, or of a stage for all its layers."""


@dataclass(frozen=True)
class Restriction:
    """The levels (indices into the grid) that each layer may take, increasing; layers of a stage still never decrease.

    Attributes:
        space: the whole of it.
        levels: for each layer, first to last.
    """

    space: SparsitySpace
    levels: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, space: SparsitySpace, chosen: Mapping[str, Sequence[Decimal]]) -> Restriction:
        """The restriction that names for some layers, or whole stages, the ratios they may take.

        Args:
            space: what is restricted.
            chosen: ratios of its grid by `s3.2`, or by `s3` for every layer of stage 3 that is not named itself.

        Raises:
            UserError: if there is no such layer, or no configuration is left.
        """
        names = space.layer_names
        stages = [name.partition(".")[0] for name in names]
        # A stage of one layer is named s1; s1.1 is the same layer.
        single = {f"{stage}.1": stage for stage in stages if stages.count(stage) == 1}
        by_name = {single.get(name, name): values for name, values in chosen.items()}
        for name in by_name:
            if name not in names and name not in stages:
                raise UserError(f"space.layers.{name}: the backbone has no such layer; it has {', '.join(names)}")
        every = tuple(space.grid)
        levels = tuple(
            tuple(space.grid.index(value) for value in by_name.get(name, by_name.get(stage, every)))
            for name, stage in zip(names, stages, strict=True)
        )
        restriction = cls(space, levels)
        for stage, count in zip(dict.fromkeys(stages), restriction.stage_counts, strict=True):
            if count == 0:
                layers = ", ".join(name for name, own in zip(names, stages, strict=True) if own == stage)
                raise UserError(
                    f"space.layers leaves no configuration: ratios do not decrease inside a stage, but those of "
                    f"{layers} cannot but decrease"
                )
        return restriction

    @property
    def is_whole(self) -> bool:
        """Whether every layer may take the whole grid."""
        return all(len(one) == len(self.space.grid) for one in self.levels)

    def __str__(self) -> str:
        """`s1=0.8 s3.1=0,0.5`: the layers that may not take the whole grid; `none` if there is no such layer."""
        grid = self.space.grid
        narrowed = [
            f"{name}={','.join(f'{grid[level]:f}' for level in own)}"
            for name, own in zip(self.space.layer_names, self.levels, strict=True)
            if len(own) < len(grid)
        ]
        return " ".join(narrowed) or "none"

    def __len__(self) -> int:
        """How many configurations are left."""
        return math.prod(self.stage_counts)

    @property
    def stage_counts(self) -> tuple[int, ...]:
        """How many choices each stage has, without making them."""
        return tuple(_count(part, len(self.space.grid)) for part in self._by_stage())

    def stage_levels(self) -> tuple[NDArray[np.uint8], ...]:
        """The choices of each stage as levels, shape `(N, L)` each, in lexicographic order."""
        return tuple(_choices(part) for part in self._by_stage())

    def _by_stage(self) -> list[tuple[tuple[int, ...], ...]]:
        ends = np.cumsum(self.space.layers).tolist()
        return [self.levels[end - count : end] for end, count in zip(ends, self.space.layers, strict=True)]


def _count(layers: Sequence[Sequence[int]], grid: int) -> int:
    """Sequences, one level of each layer, that do not decrease: of each level, how many end in it."""
    ending = [1] + [0] * (grid - 1)  # before the first layer: one empty sequence, below every level
    for allowed in layers:
        ending = [sum(ending[: level + 1]) if level in allowed else 0 for level in range(grid)]
    return sum(ending)


def _choices(layers: Sequence[Sequence[int]]) -> NDArray[np.uint8]:
    rows = np.array(layers[0], np.uint8).reshape(-1, 1)
    for allowed in layers[1:]:
        rows = np.column_stack([np.repeat(rows, len(allowed), axis=0), np.tile(np.array(allowed, np.uint8), len(rows))])
        rows = rows[rows[:, -1] >= rows[:, -2]]
    return rows
