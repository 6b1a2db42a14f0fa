"""How many pixels masks share, counted from their runs where they lie; COCO's forms of masks as runs.

R runs, G true masks, P pairs of a found mask and a true one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsevit.openmmlab.mask_runs import Runs

Ints = NDArray[np.int64]


class TrueMasks:
    """Masks to compare others with, laid end to end, so that one search finds a place in any of them.

    Args:
        runs: first pixels of the runs of each mask and the ones behind their last.
        sizes: pixels of each mask's image.
    """

    def __init__(self, runs: Sequence[tuple[Ints, Ints]], sizes: Ints, device: torch.device) -> None:
        starts = np.cumsum(sizes) - sizes
        # A first run of nothing, so that every place has a run that begins before it.
        begin = np.concatenate([[-1], *(own + start for (own, _), start in zip(runs, starts, strict=True))])
        end = np.concatenate([[-1], *(own + start for (_, own), start in zip(runs, starts, strict=True))])
        lengths = end - begin
        self._begin, self._length, self._before, self._starts, self._areas = (
            torch.from_numpy(each.astype(np.int64)).to(device)
            for each in (
                begin,
                lengths,
                np.cumsum(lengths) - lengths,
                starts,
                np.array([(own_end - own).sum() for own, own_end in runs]),
            )
        )

    def overlaps(self, found: Runs, detection: Tensor, truth: Tensor, crowd: Tensor) -> Tensor:
        """Intersection over union of pairs `(P,)` of masks of the same image, float64; as pycocotools' `iou`.

        Args:
            detection: index of the found mask.
            truth: index of the true mask.
            crowd: whether that is a crowd: then the intersection is put over the found mask's area alone.
        """
        device = found.owner.device
        counts = torch.zeros(found.count, dtype=torch.long, device=device)
        counts.index_add_(0, found.owner, torch.ones_like(found.owner))  # without a wait for the device
        own = counts[detection]
        pair = torch.repeat_interleave(torch.arange(len(own), device=device), own)
        first = (counts.cumsum(0) - counts)[detection] - (own.cumsum(0) - own)
        run = torch.arange(len(pair), device=device) + first[pair]
        start = self._starts[truth][pair]
        shared = self._ones_before(found.end[run] + start) - self._ones_before(found.begin[run] + start)
        both = torch.zeros(len(own), dtype=torch.long, device=device).index_add_(0, pair, shared)
        area = found.areas()[detection]
        union = torch.where(crowd, area, area + self._areas[truth] - both)
        return both.double() / union.clamp(min=1).double()

    def _ones_before(self, place: Tensor) -> Tensor:
        """Ones of all masks before a place."""
        run = torch.searchsorted(self._begin, place, right=True) - 1
        return self._before[run] + torch.minimum(place - self._begin[run], self._length[run])


def runs_of(mask: Any) -> tuple[Ints, Ints]:
    """Runs of a mask given as a bitmap `(H, W)` or in one of COCO's run-length forms."""
    if not isinstance(mask, Mapping):
        flat = np.zeros(mask.size + 2, np.int8)
        flat[1:-1] = np.asarray(mask, np.bool_).ravel(order="F")
        edges = np.flatnonzero(np.diff(flat))
        return edges[::2], edges[1::2]
    counts = mask["counts"]
    lengths = np.asarray(counts, np.int64) if isinstance(counts, list) else _lengths(counts)
    ends = np.cumsum(lengths)
    begin, end = ends[: len(ends) // 2 * 2 : 2], ends[1::2]
    return begin[end > begin], end[end > begin]


def all_runs(masks: Sequence[Any]) -> Runs:
    """The runs of several masks, on the CPU."""
    found = [runs_of(mask) for mask in masks]
    owner = np.repeat(np.arange(len(found)), [len(begin) for begin, _ in found])
    nothing = np.zeros(0, np.int64)
    begin, end = (torch.from_numpy(np.concatenate([nothing, *(each[side] for each in found)])) for side in (0, 1))
    return Runs(torch.from_numpy(owner), begin, end, len(found))


def _lengths(text: str | bytes) -> Ints:
    """Runs of zeros and ones in turn, from COCO's compressed text.

    From the fourth on each is told by its difference to the one two before, in digits of five bits, lowest first, with
    a sixth that says whether more follow (`rleFrString` of COCO).
    """
    digits = np.frombuffer(text.encode("ascii") if isinstance(text, str) else text, np.uint8).astype(np.int64) - 48
    last = digits & 0x20 == 0
    starts = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1]).astype(np.int64)
    sizes = np.diff(np.append(starts, len(digits)))
    place = np.arange(len(digits)) - np.repeat(starts, sizes)
    lengths = np.add.reduceat((digits & 0x1F) << (5 * place), starts)
    lengths -= np.where(digits[last] & 0x10, np.int64(1) << (5 * sizes), 0)
    lengths[1::2] = np.cumsum(lengths[1::2])
    lengths[2::2] = np.cumsum(lengths[2::2])
    return lengths
