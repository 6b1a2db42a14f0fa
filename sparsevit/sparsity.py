"""Sparsity configurations and the space they are searched in. Pure Python and NumPy.

A *layer* is a pair of consecutive blocks (plain, shifted) that share one pruning ratio. Ratios do not decrease inside a
stage, because all layers of a stage keep prefixes of one and the same window ranking.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cached_property
from itertools import combinations_with_replacement, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsevit.errors import UserError

PAPER_GRID = ("0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8")
_FORMS = "write stages apart with '/', layers with ',', for example 0.3/0/0.1,0.2,0.2/0"


def ratio(value: Any) -> Decimal:
    """An exact pruning ratio from a number or its text: `0 <= ratio < 1`, rounded to six decimals.

    Raises:
        UserError: if it is no number, or out of range.
    """
    try:
        exact = Decimal(value if isinstance(value, str) else repr(float(value)))
    except (TypeError, ValueError, InvalidOperation):
        raise UserError(f"pruning ratio {value!r} is not a number") from None
    if exact.is_nan():
        raise UserError(f"pruning ratio {value!r} is not a number")
    if abs(exact) < 2:  # rounding a huge number fails
        exact = round(exact, 6).normalize()
    if not 0 <= exact < 1:
        raise UserError(f"pruning ratio {value} is outside 0 <= ratio < 1")
    return exact + 0  # -0 becomes 0


def kept_windows(windows: int, pruned: Decimal) -> int:
    """How many of `windows` windows stay active: `floor(windows * (1 - ratio))`, at least 1, in exact arithmetic."""
    return max(1, math.floor(windows * (1 - pruned)))


def windows_per_stage(
    image_size: tuple[int, int], *, stages: int = 4, window: int = 7, patch: int = 4
) -> tuple[int, ...]:
    """Number of windows of each stage for an image of `(height, width)` pixels, padding included."""
    height, width = (math.ceil(side / patch) for side in image_size)
    counts = []
    for _ in range(stages):
        counts.append(math.ceil(height / window) * math.ceil(width / window))
        height, width = math.ceil(height / 2), math.ceil(width / 2)
    return tuple(counts)


def layers_per_stage(depths: Sequence[int]) -> tuple[int, ...]:
    """Layers (block pairs) of each stage; a stage of odd depth ends in a layer of one block."""
    return tuple(math.ceil(depth / 2) for depth in depths)


@dataclass(frozen=True, order=True)
class Sparsity:
    """One pruning ratio per layer, by stage. A value: frozen, hashable, ordered.

    `str(sparsity)` is its one canonical text form (`0.3/0/0.1,0.2,0.2/0`), and `Sparsity.parse` reads it back.
    """

    stages: tuple[tuple[Decimal, ...], ...]

    def __post_init__(self) -> None:
        stages = tuple(tuple(ratio(value) for value in stage) for stage in self.stages)
        if not stages or not all(stages):
            raise UserError(f"a sparsity needs at least one ratio per stage, got {self.stages!r}")
        object.__setattr__(self, "stages", stages)
        for number, stage in enumerate(stages, 1):
            if list(stage) != sorted(stage):
                raise UserError(
                    f"pruning ratios decrease inside stage {number}: {_join(stage)}; "
                    f"all layers of a stage keep prefixes of one ranking, so write {_join(sorted(stage))}"
                )

    @classmethod
    def parse(cls, text: str) -> Sparsity:
        """The sparsity that a text stands for: stages apart by `/` or `|`, layers by commas or spaces."""
        return cls(tuple(tuple(ratio(word) for word in stage) for stage in _words(text)))

    @classmethod
    def of(cls, value: Any, depths: Sequence[int]) -> Sparsity:
        """The sparsity that `value` stands for, for a backbone of these `depths`.

        Args:
            value: a `Sparsity`; `None` or `"dense"`; one number for all layers; its text form; a flat list with a
                ratio per layer; a list per stage; or, as in the paper's configs, a list per stage (or a flat list)
                with one ratio per *block*.
            depths: blocks of each stage.

        Raises:
            UserError: if the shape fits no such form, or the two blocks of a layer differ.
        """
        layers = layers_per_stage(depths)
        items = _items(value)
        if not isinstance(items, list):
            return cls(tuple((ratio(items),) * count for count in layers))
        if not any(isinstance(item, list) for item in items):
            for counts in (layers, depths):
                if len(items) == sum(counts):
                    items = _split(items, counts)
                    break
        shape = [len(item) if isinstance(item, list) else None for item in items]
        if shape == list(layers):
            return cls(tuple(tuple(item) for item in items))
        if shape == list(depths):
            return cls(tuple(_blocks_to_layers(item, number) for number, item in enumerate(items, 1)))
        raise _misshapen(value, depths)

    def __str__(self) -> str:
        return "/".join(_join(stage) for stage in self.stages)

    @property
    def flat(self) -> tuple[Decimal, ...]:
        """The ratios of all layers, first to last."""
        return tuple(value for stage in self.stages for value in stage)

    @property
    def floats(self) -> list[list[float]]:
        """The ratios by stage as plain floats, as written into a config."""
        return [[float(value) for value in stage] for stage in self.stages]

    @property
    def is_dense(self) -> bool:
        """Whether no window is pruned."""
        return not any(self.flat)

    def kept(self, windows: Sequence[int]) -> tuple[int, ...]:
        """Windows each layer keeps, given the windows of each stage (see `windows_per_stage`).

        Two sparsities that keep the same windows compute the same function of an image of that size.
        """
        return tuple(
            kept_windows(count, value) for count, stage in zip(windows, self.stages, strict=True) for value in stage
        )


@dataclass(frozen=True)
class SparsitySpace:
    """All sparsities of a backbone over a grid of ratios.

    Configurations are also addressed by *levels*: one index into the grid per layer, the form in which a sampler sees
    them and in which whole spaces are enumerated.
    """

    depths: tuple[int, ...] = (2, 2, 6, 2)
    grid: tuple[Decimal, ...] = tuple(Decimal(value) for value in PAPER_GRID)

    def __post_init__(self) -> None:
        grid = tuple(ratio(value) for value in self.grid)
        if not grid or list(grid) != sorted(set(grid)):
            raise UserError(f"the grid of ratios must increase strictly, got {_join(grid)}")
        if not self.depths or min(self.depths) < 1:
            raise UserError(f"depths must be positive, got {self.depths}")
        object.__setattr__(self, "grid", grid)
        object.__setattr__(self, "depths", tuple(self.depths))

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """Layers of each stage."""
        return layers_per_stage(self.depths)

    @cached_property
    def layer_names(self) -> tuple[str, ...]:
        """`s1`, `s2`, `s3.1`, `s3.2` …: the stage, and the layer where a stage has several."""
        return tuple(
            f"s{stage}.{layer}" if count > 1 else f"s{stage}"
            for stage, count in enumerate(self.layers, 1)
            for layer in range(1, count + 1)
        )

    @property
    def dense(self) -> Sparsity:
        """Ratio 0 in every layer."""
        return Sparsity.of(None, self.depths)

    def uniform(self, value: Any) -> Sparsity:
        """The same ratio in every layer."""
        return self.check(Sparsity.of(ratio(value), self.depths))

    def parse(self, value: Any) -> Sparsity:
        """Any form that `Sparsity.of` accepts, checked against the grid."""
        return self.check(Sparsity.of(value, self.depths))

    def check(self, sparsity: Sparsity) -> Sparsity:
        """`sparsity` itself, if it lies in this space.

        Raises:
            UserError: if a ratio is off the grid, or the layers are not this backbone's.
        """
        if tuple(len(stage) for stage in sparsity.stages) != self.layers:
            raise _misshapen(sparsity, self.depths)
        for value in sparsity.flat:
            if value not in self.grid:
                raise UserError(f"ratio {value:f} of {sparsity} is outside the grid {_join(self.grid)}")
        return sparsity

    def __contains__(self, sparsity: object) -> bool:
        if not isinstance(sparsity, Sparsity):
            return False
        try:
            self.check(sparsity)
        except UserError:
            return False
        return True

    def __len__(self) -> int:
        """How many sparsities there are: multisets of ratios for every stage."""
        return math.prod(math.comb(len(self.grid) + count - 1, count) for count in self.layers)

    def __iter__(self) -> Iterator[Sparsity]:
        stages = [combinations_with_replacement(self.grid, count) for count in self.layers]
        return (Sparsity(choice) for choice in product(*stages))

    def sample(self, rng: random.Random) -> Sparsity:
        """One draw, every layer's ratio uniform over the grid and then sorted inside its stage, as SAA draws."""
        return self.decode([rng.randrange(len(self.grid)) for _ in range(sum(self.layers))])

    def decode(self, levels: Sequence[int]) -> Sparsity:
        """The valid sparsity nearest to hand: grid values at `levels`, sorted inside every stage.

        Raises:
            UserError: if there is not one level a layer, or one is no index into the grid.
        """
        if len(levels) != sum(self.layers):
            raise UserError(f"{len(levels)} levels given for {sum(self.layers)} layers")
        if not all(0 <= level < len(self.grid) for level in levels):
            raise UserError(f"levels {list(levels)} are not all indices from 0 to {len(self.grid) - 1} into the grid")
        return Sparsity(tuple(tuple(sorted(self.grid[i] for i in part)) for part in _split(list(levels), self.layers)))

    def encode(self, sparsity: Sparsity) -> tuple[int, ...]:
        """The levels of a sparsity of this space; `decode` reads them back."""
        return tuple(self.grid.index(value) for value in self.check(sparsity).flat)

    @cached_property
    def stage_levels(self) -> tuple[NDArray[np.uint8], ...]:
        """Every choice of each stage as levels, shape `(choices, layers of the stage)`, in lexicographic order.

        A space is the product of its stages' choices: a sparsity of millions is one index for each stage.
        """
        every = range(len(self.grid))
        return tuple(
            np.array(list(combinations_with_replacement(every, count)), np.uint8).reshape(-1, count)
            for count in self.layers
        )

    def all_levels(self) -> NDArray[np.uint8]:
        """Every sparsity as levels, in the order of iteration; shape `(len(space), layers)`."""
        return product_levels(self.stage_levels, np.arange(len(self)))

    def kept_table(self, windows: Sequence[int]) -> NDArray[np.int64]:
        """Windows kept by layer and grid value, shape `(layers, grid)`: `kept_table[l, levels[l]]` are layer l's."""
        per_stage = [[kept_windows(count, value) for value in self.grid] for count in windows]
        return np.array([row for row, count in zip(per_stage, self.layers, strict=True) for _ in range(count)])

    def count_distinct(self, windows: Sequence[int]) -> int:
        """How many sparsities differ in the windows they keep at this image size."""
        distinct = (len({kept_windows(count, value) for value in self.grid}) for count in windows)
        return math.prod(math.comb(n + count - 1, count) for n, count in zip(distinct, self.layers, strict=True))


def product_levels(stages: Sequence[NDArray[np.uint8]], numbers: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
    """Levels, shape `(N, L)`, of the `numbers`, shape `(N,)`, in the product of stages' choices; the last runs fastest.

    Args:
        stages: choices of each stage, shape `(choices, layers of the stage)`, as `SparsitySpace.stage_levels` has them.
    """
    table = np.empty((len(numbers), sum(stage.shape[1] for stage in stages)), np.uint8)
    end, rest = table.shape[1], np.asarray(numbers)
    for stage in reversed(stages):
        rest, choice = np.divmod(rest, len(stage))
        table[:, end - stage.shape[1] : end] = stage[choice]
        end -= stage.shape[1]
    return table


def repair(stages: Iterable[Iterable[Any]]) -> Sparsity:
    """The valid sparsity nearest to arbitrary ratios by stage: sorted inside every stage. Idempotent."""
    return Sparsity(tuple(tuple(sorted(ratio(value) for value in stage)) for stage in stages))


def _join(values: Iterable[Decimal]) -> str:
    return ",".join(f"{value:f}" for value in values)


def _items(value: Any) -> Any:
    """Any accepted form as nested lists of what should be ratios, or as one such item that stands for all layers."""
    if value is None or (isinstance(value, str) and value.strip().lower() == "dense"):
        return Decimal(0)
    if isinstance(value, Sparsity):
        return [list(stage) for stage in value.stages]
    if isinstance(value, str):
        stages = _words(value)
        if len(stages) > 1:
            return stages
        return stages[0] if len(stages[0]) > 1 else stages[0][0]
    try:
        return [list(item) if _is_list(item) else item for item in value]
    except TypeError:  # not iterable: a number of any kind
        return value


def _words(text: str) -> list[list[str]]:
    stages = [re.split(r"[\s,]+", stage.strip(", \t\n")) for stage in re.split(r"[/|]", text)]
    if not all(word for stage in stages for word in stage):
        raise UserError(f"cannot read the sparsity {text!r}: {_FORMS}")
    return stages


def _is_list(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str)


def _split(items: list[Any], counts: Sequence[int]) -> list[list[Any]]:
    parts, start = [], 0
    for count in counts:
        parts.append(items[start : start + count])
        start += count
    return parts


def _blocks_to_layers(blocks: Sequence[Any], stage: int) -> tuple[Decimal, ...]:
    ratios = [ratio(value) for value in blocks]
    for first, second in zip(ratios[::2], ratios[1::2], strict=False):
        if first != second:
            raise UserError(
                f"the two blocks of a layer share one ratio, "
                f"but stage {stage} has {first:f} and {second:f} in {_join(ratios)}"
            )
    return tuple(ratios[::2])


def _misshapen(value: Any, depths: Sequence[int]) -> UserError:
    layers = layers_per_stage(depths)
    shown = str(value) if isinstance(value, Sparsity) else repr(value)
    return UserError(
        f"sparsity {shown} does not fit a backbone with depths {tuple(depths)}: give one ratio per layer "
        f"({' + '.join(map(str, layers))} by stage) or per block; {_FORMS}"
    )
