"""Detections judged by COCO's rules as they come: matched in a thread of their own while the device finds more.

Figures are those of pycocotools. What does not depend on a detector is worked out once.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparsevit.errors import UserError
from sparsevit.openmmlab.coco_matching import Candidates, Matched, Objects, Pairs, average_precisions, match
from sparsevit.openmmlab.detections import Detections
from sparsevit.openmmlab.host_copy import HostCopy
from sparsevit.openmmlab.mask_overlaps import TrueMasks, runs_of

AT_ONCE = 8192
"""Detections matched at once: in small parts the calls cost more than what they do."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Truth:
    """The true objects of the first images of an mmdet data set in COCO's format, by image and class.

    Attributes:
        objects: of all these images.
        images: how many they are.
        classes: how many classes there are.
        rank: position of each image by id.
    """

    def __init__(self, dataset: Any, images: int) -> None:
        self._file, self._coco = dataset.ann_file, dataset.coco
        self.images, self.classes = images, len(dataset.cat_ids)
        labels = {category: label for label, category in enumerate(dataset.cat_ids)}
        self._ids = dataset.img_ids[:images]
        entries = [
            (index * self.classes + labels[entry["category_id"]], entry)
            for index, image in enumerate(self._ids)
            for entry in self._coco.imgToAnns.get(image, ())
            if entry["category_id"] in labels
        ]
        entries.sort(key=lambda pair: pair[0])  # stable: of an image and class they stay in the file's order
        self._entries = [entry for _, entry in entries]
        self._group = np.array([group for group, _ in entries], np.int64)
        self._box = np.array(self._values("bbox"), np.float64).reshape(-1, 4)
        self.objects = Objects(
            label=self._group % self.classes,
            area=np.array(self._values("area"), np.float64),
            crowd=np.array([bool(entry.get("iscrowd")) for entry in self._entries], np.bool_),
        )
        self._masks: tuple[torch.device, TrueMasks] | None = None
        self.rank = np.argsort(np.argsort(np.array(self._ids), kind="stable"))

    def pairs(self, image: Ints, label: Ints) -> tuple[Ints, Ints]:
        """Every detection with every object of its image and class: indices of both, `(P,)`."""
        group = image * self.classes + label
        first = np.searchsorted(self._group, group, side="left")
        counts = np.searchsorted(self._group, group, side="right") - first
        detection = np.repeat(np.arange(len(group)), counts)
        return detection, np.arange(len(detection)) + np.repeat(first - (np.cumsum(counts) - counts), counts)

    def box_overlaps(self, found: Floats, truth: Ints) -> Floats:
        """Intersection over union of pairs of boxes `(P, 4)`, left, top, width and height, as pycocotools' `iou`."""
        other = self._box[truth]
        low = np.maximum(found[:, :2], other[:, :2])
        sides = np.minimum(found[:, :2] + found[:, 2:], other[:, :2] + other[:, 2:]) - low
        shared = np.where((sides > 0).all(axis=1), sides[:, 0] * sides[:, 1], 0.0)
        own, area = found[:, 2] * found[:, 3], other[:, 2] * other[:, 3]
        union = np.where(self.objects.crowd[truth], own, own + area - shared)
        return np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)

    def fits(self, image: Ints, size: Ints) -> NDArray[np.bool_]:
        """Whether masks are of their image's size; pycocotools compares no others."""
        return np.asarray((self._size[image] == size).all(axis=1))

    def masks(self, device: torch.device) -> TrueMasks:
        """The objects' masks, on the device."""
        if self._masks is None or self._masks[0] != device:
            sizes = self._size[self._group // self.classes].prod(axis=1)
            self._masks = device, TrueMasks(self._runs, sizes, device)
        return self._masks[1]

    @cached_property
    def _runs(self) -> list[tuple[Ints, Ints]]:
        self._values("segmentation")
        return [runs_of(self._coco.annToRLE(entry)) for entry in self._entries]

    @cached_property
    def _size(self) -> Ints:
        """Height and width of each image, `(images, 2)`; boxes do not need them."""
        records = [self._coco.imgs[image] for image in self._ids]
        return np.array([(each["height"], each["width"]) for each in records], np.int64).reshape(-1, 2)

    def _values(self, key: str) -> list[Any]:
        for entry in self._entries:
            if entry.get(key) in (None, []):
                raise UserError(f"annotation {entry['id']} of {self._file} has no {key}, which COCO's metrics need")
        return [entry[key] for entry in self._entries]


@dataclass(frozen=True, eq=False)
class _Part:
    """Detections of some images with what they are paired with; areas and overlaps of masks may be on their way."""

    found: Detections
    detection: Ints
    truth: Ints
    areas: HostCopy | None = None
    overlaps: HostCopy | None = None


class Scoring:
    """One detector's detections in all images of a truth; used with `with`."""

    def __init__(self, truth: Truth) -> None:
        self._truth = truth
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="scoring")
        self._waiting: dict[str, list[_Part]] = {}
        self._matched: dict[str, list[Future[Matched]]] = {}

    def __enter__(self) -> Scoring:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)

    def add(self, found: Detections) -> None:
        """All detections of some images, each image once."""
        detection, truth = self._truth.pairs(found.image, found.label)
        self._wait("bbox", _Part(found, detection, truth))
        if found.masks is None or found.size is None:
            return
        fits = self._truth.fits(found.image, found.size)[detection]
        detection, truth = detection[fits], truth[fits]
        device, crowd = found.masks.owner.device, self._truth.objects.crowd[truth]
        own, others, crowds = (torch.from_numpy(each).to(device) for each in (detection, truth, crowd))
        overlaps = self._truth.masks(device).overlaps(found.masks, own, others, crowds)
        self._wait("segm", _Part(found, detection, truth, HostCopy(found.masks.areas()), HostCopy(overlaps)))

    def figures(self) -> dict[str, float]:
        """`bbox_mAP`, `bbox_mAP_50`, … and with masks `segm_mAP`, …; fractions."""
        figures = {}
        for kind in self._waiting:
            self._match_waiting(kind)
        for kind, parts in self._matched.items():
            found = average_precisions([part.result() for part in parts], self._truth.objects, self._truth.classes)
            figures.update({f"{kind}_{name}": value for name, value in found.items()})
        return figures

    def _wait(self, kind: str, part: _Part) -> None:
        waiting = self._waiting.setdefault(kind, [])
        waiting.append(part)
        if sum(len(each.found.score) for each in waiting) >= AT_ONCE:
            self._match_waiting(kind)

    def _match_waiting(self, kind: str) -> None:
        parts = self._waiting[kind]
        if parts or kind not in self._matched:
            self._matched.setdefault(kind, []).append(self._pool.submit(self._match, parts))
        self._waiting[kind] = []

    def _match(self, parts: Sequence[_Part]) -> Matched:
        lengths = [len(part.found.score) for part in parts]
        places = np.cumsum([0, *lengths[:-1]])
        candidates, overlaps = zip(*(self._measured(part) for part in parts), strict=True)
        names = ("image", "label", "score", "area")
        found = Candidates(*(np.concatenate([getattr(each, name) for each in candidates]) for name in names))
        detection = np.concatenate([part.detection + place for part, place in zip(parts, places, strict=True)])
        truth = np.concatenate([part.truth for part in parts])
        return match(found, self._truth.objects, Pairs(detection, truth, np.concatenate(overlaps)))

    def _measured(self, part: _Part) -> tuple[Candidates, Floats]:
        found = part.found
        if part.areas is not None and part.overlaps is not None:
            areas, overlaps = part.areas.wait().astype(np.float64), part.overlaps.wait()
        else:
            box = found.box.astype(np.float64)
            box[:, 2:] -= box[:, :2]
            areas, overlaps = box[:, 2] * box[:, 3], self._truth.box_overlaps(box[part.detection], part.truth)
        score = found.score.astype(np.float64)
        return Candidates(self._truth.rank[found.image], found.label, score, areas), overlaps
