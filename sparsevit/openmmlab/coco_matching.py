"""COCO's average precision: detections matched with true objects, and precision over recall, for all images at once.

The rules are pycocotools' (`COCOeval.evaluateImg` and `accumulate`), which goes through them one by one.

A ranges of area, T thresholds of overlap, D detections, G true objects, P pairs of both, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
AREAS = np.array([(0, 1e5**2), (0, 32**2), (32**2, 96**2), (96**2, 1e5**2)])
"""All, small, medium and large: square pixels."""
MOST = 100
"""Detections of a class that count in an image, best first."""

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Objects:
    """True objects `(G,)`: class, area in pixels, and whether it is a crowd, which any number of detections may hit."""

    label: Ints
    area: Floats
    crowd: Bools


@dataclass(frozen=True, eq=False)
class Candidates:
    """Detections `(D,)`, all of each image.

    Attributes:
        image: a number whose order decides between equal scores; pycocotools goes by the images' ids.
        area: in pixels.
    """

    image: Ints
    label: Ints
    score: Floats
    area: Floats


@dataclass(frozen=True, eq=False)
class Pairs:
    """Detections and true objects of the same class in the same image, `(P,)`; each by its index.

    Attributes:
        overlap: intersection over union, over the detection's area alone for a crowd.
    """

    detection: Ints
    truth: Ints
    overlap: Floats


@dataclass(frozen=True, eq=False)
class Matched:
    """The detections that count, and for each range and threshold `(A, T, D)` what became of them.

    Attributes:
        right: hit an object that counts.
        judged: neither hit one that does not count, nor missed all with an area beyond the range.
    """

    image: Ints
    label: Ints
    score: Floats
    right: Bools
    judged: Bools


def match(found: Candidates, truth: Objects, pairs: Pairs) -> Matched:
    """Match the detections of some images with their objects."""
    order = np.lexsort((-found.score, found.image, found.label))
    order = order[_rank(_changes(found.image[order], found.label[order])) < MOST]
    place = np.full(len(found.score), -1, np.int64)
    place[order] = np.arange(len(order))
    found = Candidates(found.image[order], found.label[order], found.score[order], found.area[order])
    close = (pairs.overlap >= THRESHOLDS[0]) & (place[pairs.detection] >= 0)
    pairs = Pairs(place[pairs.detection[close]], pairs.truth[close], pairs.overlap[close])
    hit, ignored = _match(found, pairs, _ignored(truth), truth.crowd)
    return Matched(found.image, found.label, found.score, hit & ~ignored, ~ignored)


def average_precisions(parts: Sequence[Matched], truth: Objects, classes: int) -> dict[str, float]:
    """`mAP`, `mAP_50`, `mAP_75`, `mAP_s`, `mAP_m`, `mAP_l`: fractions, 0 where there is nothing to find.

    Args:
        parts: detections of some images each, together of all.
    """
    image, label, score = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("image", "label", "score")
    )
    order = np.lexsort((image, -score, label))
    right, judged = (
        np.concatenate([getattr(part, name) for part in parts], axis=-1)[:, :, order] for name in ("right", "judged")
    )
    ends = np.searchsorted(label[order], np.arange(classes + 1))
    precision = _precision(right, judged, ends, _ignored(truth), truth.label)
    names = {"mAP": precision[0], "mAP_50": precision[0, 0], "mAP_75": precision[0, 5]}
    names |= {f"mAP_{name}": precision[area] for area, name in enumerate("sml", 1)}
    return {name: float(each[each > -1].mean()) if (each > -1).any() else 0.0 for name, each in names.items()}


def _ignored(truth: Objects) -> Bools:
    """Which objects do not count in each range of area, `(A, G)`."""
    return truth.crowd | _outside(truth.area)


def _outside(area: Floats) -> Bools:
    """Whether an area lies beyond each range, `(A, n)`."""
    return (area < AREAS[:, :1]) | (area > AREAS[:, 1:])


def _changes(*keys: Ints) -> Bools:
    """Where any key differs from that of the element before; the first element's does."""
    changes = np.ones(len(keys[0]), np.bool_)
    changes[1:] = np.logical_or.reduce([key[1:] != key[:-1] for key in keys])
    return changes


def _rank(changes: Bools) -> Ints:
    """Position of each element in its own run."""
    index = np.arange(len(changes))
    return index - np.maximum.accumulate(np.where(changes, index, 0))


def _match(found: Candidates, pairs: Pairs, ignored_truth: Bools, crowd: Bools) -> tuple[Bools, Bools]:
    """Which detections hit an object, and which of them do not count, each `(A, T, D)`.

    In an image and class the best detection chooses first: the object that it overlaps most, of those that count and
    nobody took; else of those that do not count. The first choices of all images and classes are made at once, then the
    second ones, and so on.
    """
    areas, thresholds = len(AREAS), len(THRESHOLDS)
    hit = np.zeros((areas, thresholds, len(found.score)), np.bool_)
    ignored = np.repeat(_outside(found.area)[:, None], thresholds, axis=1)
    if not len(pairs.detection):
        return hit, ignored
    detections, which = np.unique(pairs.detection, return_inverse=True)
    turn = _rank(_changes(found.image[detections], found.label[detections]))[which]
    order = np.lexsort((pairs.truth, pairs.overlap, pairs.detection, turn))  # of equal overlaps the last object wins
    detection, truth, overlap = pairs.detection[order], pairs.truth[order], pairs.overlap[order]
    liking = _rank(_changes(detection)).astype(np.int32)
    counts_more = np.int32(len(order))
    taken = np.zeros((areas, thresholds, len(crowd)), np.bool_)
    ends = np.cumsum(np.bincount(turn)).tolist()
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        own = truth[start:end]
        free = (overlap[start:end] >= THRESHOLDS[:, None]) & (~taken[:, :, own] | crowd[own])
        value = np.where(ignored_truth[:, own], 0, counts_more) + liking[start:end]
        value = np.where(free, value[:, None], -1)
        first = np.flatnonzero(liking[start:end] == 0)
        best = np.maximum.reduceat(value, first, axis=-1)
        area, threshold, chooser = (best >= 0).nonzero()
        chosen = own[first[chooser] + best[area, threshold, chooser] % counts_more]
        chooser = detection[start:end][first[chooser]]
        taken[area, threshold, chosen] = True
        hit[area, threshold, chooser] = True
        ignored[area, threshold, chooser] = ignored_truth[area, chosen]
    return hit, ignored


def _precision(right: Bools, judged: Bools, ends: Ints, ignored_truth: Bools, truth_label: Ints) -> Floats:
    """Precision at each of `RECALLS`, `(A, T, K, recalls)`; -1 for a class without an object that counts.

    Args:
        right, judged: of detections by class and descending score.
        ends: where the classes begin, and the last one ends, `(K + 1,)`.
    """
    classes = len(ends) - 1
    precision = np.full((*right.shape[:2], classes, len(RECALLS)), -1.0)
    for label in range(classes):
        own = slice(ends[label], ends[label + 1])
        wanted = (~ignored_truth[:, truth_label == label]).sum(axis=1)
        if not wanted.any():
            continue
        before = np.cumsum(judged[:, :, own], axis=-1, dtype=np.int32)
        for area in np.flatnonzero(wanted):
            at = np.searchsorted(np.arange(1, wanted[area] + 1) / wanted[area], RECALLS, side="left")
            for threshold in range(right.shape[1]):
                places = right[area, threshold, own].nonzero()[0]
                precision[area, threshold, label] = _curve(before[area, threshold, places], at)
    return precision


def _curve(judged: NDArray[np.int32], at: Ints) -> Floats:
    """Best precision from each recall on, given how many detections were judged up to each right one."""
    right = np.arange(1, len(judged) + 1, dtype=np.float64)
    envelope = np.maximum.accumulate((right / (judged + np.spacing(1.0)))[::-1])[::-1]
    curve = np.zeros(len(at))
    reached = at < len(judged)
    curve[reached] = envelope[at[reached]]
    return curve
