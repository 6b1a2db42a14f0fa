"""Latencies of whole spaces, from what each stage adds: millions of configurations in a moment.

The configurations of a space stand in the order of iteration; the numbers here are places in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from sparsevit.latency.additive import Terms
from sparsevit.sparsity import SparsitySpace

CHUNK = 1 << 20
"""Configurations whose latencies are held at a time, where not all are asked for."""


def predict_all(space: SparsitySpace, terms: Sequence[Terms]) -> NDArray[np.float32]:
    """The latency, ms, of every configuration, shape `(len(space),)`; four bytes each, so with 7 digits."""
    found = np.empty(len(space), np.float32)
    start = 0
    for chunk in _chunks(space, terms):
        found[start : start + len(chunk)] = chunk
        start += len(chunk)
    return found


def numbers_within(
    space: SparsitySpace, terms: Sequence[Terms], low_ms: float, high_ms: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The configurations from `low_ms` to `high_ms`, both included, by number, and their latencies, ms."""
    numbers, latencies, start = [], [], 0
    for chunk in _chunks(space, terms):
        inside = np.flatnonzero((chunk >= low_ms) & (chunk <= high_ms))
        numbers.append(inside + start)
        latencies.append(chunk[inside])
        start += len(chunk)
    return np.concatenate(numbers), np.concatenate(latencies)


def count_within(space: SparsitySpace, terms: Sequence[Terms], low_ms: float, high_ms: float) -> int:
    """How many configurations take from `low_ms` to `high_ms`, both included; lists none of them.

    One sum of terms takes two sorted halves: for each choice of the smaller half, how far into the larger one the
    bounds reach. Of two sums the larger counts, which has no order to search in, so chunks are gone through.
    """
    if len(terms) > 1:
        return sum(int(((c >= low_ms) & (c <= high_ms)).sum()) for c in _chunks(space, terms))
    few, many = _halves(terms[0].of_stages(space), terms[0].dense_ms)
    many = np.sort(many)
    above = np.searchsorted(many, low_ms - few, side="left")
    return int((np.searchsorted(many, high_ms - few, side="right") - above).sum())


def reachable(space: SparsitySpace, terms: Sequence[Terms]) -> tuple[float, float]:
    """The lowest and the highest latency of the space, ms."""
    if len(terms) > 1:
        ends = [(float(chunk.min()), float(chunk.max())) for chunk in _chunks(space, terms)]
        return min(low for low, _ in ends), max(high for _, high in ends)
    stages, dense_ms = terms[0].of_stages(space), terms[0].dense_ms
    return dense_ms + sum(float(one.min()) for one in stages), dense_ms + sum(float(one.max()) for one in stages)


def _halves(stages: Sequence[NDArray[np.float64]], dense_ms: float) -> list[NDArray[np.float64]]:
    """The sums of the largest stage, and of all others with the dense latency; the smaller half first."""
    largest = max(range(len(stages)), key=lambda stage: len(stages[stage]))
    others = _outer([*stages[:largest], *stages[largest + 1 :], np.array([dense_ms])])
    return sorted([others, stages[largest]], key=len)


def _outer(parts: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Sums of one of each part, the last running fastest."""
    return reduce(lambda left, right: (left[:, None] + right).ravel(), parts)


def _chunks(space: SparsitySpace, terms: Sequence[Terms]) -> Iterator[NDArray[np.float64]]:
    """Latencies of all configurations in order, some at a time: a few sums of the first stages with all of the rest."""
    every = [each.of_stages(space) for each in terms]
    sizes = [len(stage) for stage in every[0]]
    cut = max(1, len(sizes) - 1)
    while cut > 1 and np.prod(sizes[cut - 1 :]) <= CHUNK:
        cut -= 1
    sums = [
        (_outer([np.array([one.dense_ms]), *stages[:cut]]), _outer(stages[cut:] or [np.zeros(1)]))
        for one, stages in zip(terms, every, strict=True)
    ]
    step = max(1, CHUNK // len(sums[0][1]))
    for start in range(0, len(sums[0][0]), step):
        parts = [(heads[start : start + step, None] + tails).ravel() for heads, tails in sums]
        yield reduce(np.maximum, parts)
