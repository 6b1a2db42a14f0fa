"""Matching all images at once decides as going through them one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("mmdet")

from sparsevit.openmmlab.coco_matching import (
    AREAS,
    MOST,
    THRESHOLDS,
    Candidates,
    Objects,
    Pairs,
    average_precisions,
    match,
)


def one_by_one(
    found: Candidates, truth: Objects, overlaps: dict[tuple[int, int], float]
) -> dict[tuple[int, int, int], tuple[bool, bool]]:
    """Whether a detection is right and whether it is judged, by range, threshold and detection: COCO's own loop."""
    groups = sorted(set(zip(found.image.tolist(), found.label.tolist(), strict=True)))
    outcome = {}
    for area, (low, high) in enumerate(AREAS):
        ignored = truth.crowd | (truth.area < low) | (truth.area > high)
        for step, threshold in enumerate(THRESHOLDS):
            taken: set[int] = set()
            for group in groups:
                own = [i for i in range(len(found.score)) if (found.image[i], found.label[i]) == group]
                for detection in sorted(own, key=lambda i: -found.score[i])[:MOST]:
                    best, reached = -1, threshold
                    near = sorted(t for d, t in overlaps if d == detection)
                    for other in sorted(near, key=lambda t: bool(ignored[t])):
                        if other in taken and not truth.crowd[other]:
                            continue
                        if best >= 0 and not ignored[best] and ignored[other]:
                            break
                        if overlaps[detection, other] >= reached:
                            best, reached = other, overlaps[detection, other]
                    taken.add(best)
                    beyond = not low <= found.area[detection] <= high
                    judged = not (ignored[best] if best >= 0 else beyond)
                    outcome[area, step, detection] = best >= 0 and judged, judged
    return outcome


@settings(max_examples=100)
@given(seed=st.integers(0, 10**6), detections=st.integers(0, 12), objects=st.integers(0, 8), groups=st.integers(1, 3))
def test_as_one_by_one(seed: int, detections: int, objects: int, groups: int) -> None:
    rng = np.random.default_rng(seed)
    areas = [100.0, 32.0**2, 5000.0, 96.0**2, 20000.0]
    group, truth_group = rng.integers(groups, size=detections), rng.integers(groups, size=objects)
    scores = rng.choice([0.1, 0.5, 0.9, rng.random()], detections)
    found = Candidates(group // 2, group % 2, scores, rng.choice(areas, detections))
    truth = Objects(truth_group % 2, rng.choice(areas, objects), rng.random(objects) < 0.3)
    detection, other = (group[:, None] == truth_group).nonzero()
    overlap = rng.choice([0.0, 0.3, 0.5, 0.52, 0.7, 0.7, 0.93, 1.0], len(detection))
    expected = one_by_one(
        found, truth, dict(zip(zip(detection.tolist(), other.tolist(), strict=True), overlap, strict=True))
    )
    order = rng.permutation(len(detection))
    matched = match(found, truth, Pairs(detection[order], other[order], overlap[order]))
    place = np.lexsort((-found.score, found.image, found.label))
    np.testing.assert_array_equal(matched.score, found.score[place])
    for (area, step, one), (right, judged) in expected.items():
        at = place.tolist().index(one)
        assert (matched.right[area, step, at], matched.judged[area, step, at]) == (right, judged)


def test_nothing_to_find_is_0() -> None:
    nothing, none = np.zeros(0, np.int64), np.zeros(0)
    found = Candidates(np.zeros(2, np.int64), np.zeros(2, np.int64), np.ones(2), np.full(2, 50.0))
    truth = Objects(nothing, none, np.zeros(0, bool))
    figures = average_precisions([match(found, truth, Pairs(nothing, nothing, none))], truth, 3)
    assert figures == dict.fromkeys(("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l"), 0.0)
