"""Figures are those of pycocotools, whatever the data set and the detections are like."""

from __future__ import annotations

import contextlib
import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("mmdet")

from sparsevit.errors import UserError
from sparsevit.openmmlab import coco_scoring
from sparsevit.openmmlab.coco_scoring import Scoring, Truth
from sparsevit.openmmlab.detections import Detections

NAMES = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")
HEIGHT, WIDTH = 130, 150


def data_set(rng: np.random.Generator, images: int, classes: int, objects: int) -> Any:
    """Objects of all sizes, crowds, objects of a class that is not asked for, and images without any; ids unordered."""
    from pycocotools.coco import COCO

    ids = rng.permutation(images * 3)[:images].tolist()
    categories = (rng.permutation(classes) * 2 + 1).tolist()
    annotations = []
    for image in ids:
        for _ in range(rng.integers(0, objects + 1)):
            x, y, w, h = box(rng)
            annotations.append({
                "id": len(annotations) + 1, "image_id": image, "category_id": int(rng.choice([*categories, 999])),
                "bbox": [x, y, w, h], "area": w * h * float(rng.choice([1.0, 0.8])),
                "iscrowd": int(rng.random() < 0.15), "segmentation": outline(rng, x, y, w, h),
            })  # fmt: skip
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image, "height": HEIGHT, "width": WIDTH} for image in ids],
        "annotations": annotations,
        "categories": [{"id": category, "name": str(category)} for category in [*categories, 999]],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return SimpleNamespace(ann_file="own.json", coco=coco, img_ids=ids, cat_ids=categories)


def box(rng: np.random.Generator) -> list[float]:
    """On a coarse grid, so that overlaps are often equal."""
    w, h = (float(rng.choice([4, 8, 16, 40, 100])) for _ in range(2))
    return [float(rng.integers(0, 12) * 4), float(rng.integers(0, 8) * 4), w, h]


def outline(rng: np.random.Generator, x: float, y: float, w: float, h: float) -> Any:
    if rng.random() < 0.3:  # as COCO writes crowds
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[int(y) : int(y + h), int(x) : int(x + w)] = 1
        flat = mask.ravel(order="F")
        edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [1 - flat[-1]]]))).tolist()
        return {"size": [HEIGHT, WIDTH], "counts": np.diff([0, *edges]).tolist()}
    return [[x, y, x + w, y, x + w, y + h, x, y + h * 0.7]]


def results(rng: np.random.Generator, dataset: Any, count: int) -> list[Any]:
    """mmdet's results: near objects or anywhere, with few different scores."""
    found = []
    for image in dataset.img_ids:
        boxes: list[list[Any]] = [[] for _ in dataset.cat_ids]
        masks: list[list[Any]] = [[] for _ in dataset.cat_ids]
        near = dataset.coco.imgToAnns[image]
        for _ in range(rng.integers(0, count + 1)):
            label = int(rng.integers(len(dataset.cat_ids)))
            x, y, w, h = box(rng)
            if near and rng.random() < 0.7:
                x, y, w, h = rng.choice([each["bbox"] for each in near]) + rng.choice([0, 0, 1, 3], 4)
            mask = np.zeros((HEIGHT, WIDTH), bool)
            mask[int(y) : int(y + h), int(x) : int(x + w)] = True
            boxes[label].append([x, y, x + w, y + h, rng.choice([0.1, 0.5, rng.random()])])
            masks[label].append(mask)
        for label, rows in enumerate(boxes):  # best first
            order = sorted(range(len(rows)), key=lambda i: -np.float32(rows[i][4]))
            boxes[label] = np.array([rows[i] for i in order], np.float32).reshape(-1, 5)
            masks[label] = [masks[label][i] for i in order]
        found.append((boxes, masks))
    return found


def reference(dataset: Any, found: list[Any], kind: str) -> dict[str, float]:
    from pycocotools import mask as coco_mask
    from pycocotools.cocoeval import COCOeval

    entries = []
    for image, (boxes, masks) in zip(dataset.img_ids, found, strict=False):
        for label, category in enumerate(dataset.cat_ids):
            for (x1, y1, x2, y2, score), mask in zip(boxes[label].tolist(), masks[label], strict=True):
                place: dict[str, Any] = {"bbox": [x1, y1, x2 - x1, y2 - y1]}
                if kind == "segm":
                    place = {"segmentation": coco_mask.encode(np.asfortranarray(mask, np.uint8))}
                entries.append({"image_id": image, "category_id": category, "score": score, **place})
    if not entries:
        return dict.fromkeys(NAMES, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):
        judge = COCOeval(dataset.coco, dataset.coco.loadRes(entries), kind)
        judge.params.imgIds, judge.params.catIds = dataset.img_ids[: len(found)], dataset.cat_ids
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return {name: max(0.0, float(value)) for name, value in zip(NAMES, judge.stats, strict=False)}


def scored(dataset: Any, found: list[Any], batches: list[list[int]]) -> dict[str, float]:
    with Scoring(Truth(dataset, len(found))) as scoring:
        for batch in batches:
            scoring.add(Detections.of_results(batch, [found[index] for index in batch], masks=True))
        return scoring.figures()


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    images=st.integers(1, 6),
    classes=st.integers(1, 3),
    objects=st.integers(0, 6),
    count=st.sampled_from([0, 3, 12]),
    at_once=st.sampled_from([1, 20, 8192]),
)
def test_parity(seed: int, images: int, classes: int, objects: int, count: int, at_once: int) -> None:
    rng = np.random.default_rng(seed)
    dataset = data_set(rng, images, classes, objects)
    found = results(rng, dataset, count)[: rng.integers(1, images + 1)]
    batches = [part.tolist() for part in np.array_split(rng.permutation(len(found)), rng.integers(1, 4)) if len(part)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coco_scoring, "AT_ONCE", at_once)
        figures = scored(dataset, found, batches)
    for kind in ("bbox", "segm"):
        own = {name: figures[f"{kind}_{name}"] for name in NAMES}
        assert own == pytest.approx(reference(dataset, found, kind), abs=1e-9)


def test_parity_with_more_detections_than_count() -> None:
    rng = np.random.default_rng(0)
    dataset = data_set(rng, 3, 1, 30)
    found = results(rng, dataset, 400)
    assert max(len(boxes[0]) for boxes, _ in found) > 100
    figures = scored(dataset, found, [[0, 1, 2]])
    for kind in ("bbox", "segm"):
        expected = reference(dataset, found, kind)
        assert 0 < expected["mAP"] < 1
        assert {name: figures[f"{kind}_{name}"] for name in NAMES} == pytest.approx(expected, abs=1e-9)


def test_masks_of_another_size_hit_nothing() -> None:
    rng = np.random.default_rng(1)
    dataset = data_set(rng, 2, 1, 6)
    found = results(rng, dataset, 12)
    assert scored(dataset, found, [[0, 1]])["segm_mAP"] > 0
    turned = [(boxes, [[mask.T for mask in each] for each in masks]) for boxes, masks in found]
    figures = scored(dataset, turned, [[0, 1]])
    assert figures["segm_mAP"] == reference(dataset, turned, "segm")["mAP"] == 0


@pytest.mark.parametrize("key", ["area", "bbox"])
def test_an_object_without_what_is_needed_is_named(key: str) -> None:
    dataset = data_set(np.random.default_rng(1), 2, 1, 6)
    entry = next(each for each in dataset.coco.dataset["annotations"] if each["category_id"] in dataset.cat_ids)
    del entry[key]
    with pytest.raises(UserError, match=f"^annotation {entry['id']} of own.json has no {key}, which"):
        Truth(dataset, 2)


def test_an_object_without_a_mask_is_named() -> None:
    rng = np.random.default_rng(1)
    dataset = data_set(rng, 2, 1, 6)
    found = results(rng, dataset, 12)
    entry = next(each for each in dataset.coco.dataset["annotations"] if each["category_id"] in dataset.cat_ids)
    del entry["segmentation"]
    with pytest.raises(UserError, match=f"^annotation {entry['id']} of own.json has no segmentation"):
        scored(dataset, found, [[0, 1]])
    boxes = [each for each, _ in found]
    for record in dataset.coco.dataset["images"]:
        del record["height"]  # which boxes do not need
    assert scored(dataset, boxes, [[0, 1]])["bbox_mAP"] == pytest.approx(reference(dataset, found, "bbox")["mAP"])
