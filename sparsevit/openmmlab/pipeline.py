"""Cutting a training pipeline of mmdet into what is computed once, what workers draw, and what the device does.

The first part is deterministic and cached, the middle runs in workers as mmdet runs it, the last part is done for the
whole batch on the training device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mmdet.datasets.pipelines import (
    Collect,
    DefaultFormatBundle,
    LoadAnnotations,
    LoadImageFromFile,
    Normalize,
    Pad,
    RandomFlip,
    Resize,
)
from numpy.typing import NDArray

Transform = Callable[[dict[str, Any]], dict[str, Any] | None]
KEYS = ("img", "gt_bboxes", "gt_labels", "gt_bboxes_ignore", "gt_masks")


class CannotSplitError(Exception):
    """A pipeline that has to run as it is, with the transform that is the reason."""


@dataclass(frozen=True)
class OnDevice:
    """What is left for the device: flip, normalise, pad.

    flip: decides and flips boxes; None for no flipping.
    normalize, pad: mmdet's transforms, whose settings count; None for no padding.
    keys, meta_keys: what a batch holds.
    """

    flip: Any
    normalize: Any
    pad: Any
    keys: tuple[str, ...]
    meta_keys: tuple[str, ...]

    def draw_flip(self, random: np.random.Generator) -> str | None:
        """A direction, or None to leave the image as it is; mmdet's `RandomFlip` with a generator of one's own."""
        if self.flip is None:
            return None
        directions = [self.flip.direction] if isinstance(self.flip.direction, str) else list(self.flip.direction)
        ratios = self.flip.flip_ratio
        if not isinstance(ratios, list):
            ratios = [ratios / len(directions)] * len(directions)
        chosen = int(random.choice(len(directions) + 1, p=[*ratios, 1 - sum(ratios)]))
        return directions[chosen] if chosen < len(directions) else None

    def padded(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape `(h, w, channels)` of an image of that shape after padding, before it meets the others."""
        height, width, *rest = shape
        if self.pad is None:
            return shape
        if self.pad.size is not None:
            return max(height, self.pad.size[0]), max(width, self.pad.size[1]), *rest
        divisor = self.pad.size_divisor
        return -(-height // divisor) * divisor, -(-width // divisor) * divisor, *rest

    def describe(self, results: dict[str, Any], direction: str | None) -> dict[str, Any]:
        """The image's meta data, as mmdet's last transforms leave it."""
        shape = results["img"].shape
        known = {
            "scale_factor": 1.0,
            **results,
            "pad_shape": self.padded(shape) if self.pad is not None else results.get("pad_shape", shape),
            "img_norm_cfg": {key: getattr(self.normalize, key) for key in ("mean", "std", "to_rgb")},
        }
        if self.flip is not None:
            known |= {"flip": direction is not None, "flip_direction": direction}
        if self.pad is not None:
            known |= {"pad_fixed_size": self.pad.size, "pad_size_divisor": self.pad.size_divisor}
        return {key: known[key] for key in self.meta_keys}

    def flip_boxes(
        self, boxes: NDArray[np.float32], shape: tuple[int, ...], direction: str | None
    ) -> NDArray[np.float32]:
        """Boxes `(n, 4)` of an image of that shape, flipped with it."""
        if direction is None:
            return boxes
        flipped: NDArray[np.float32] = self.flip.bbox_flip(boxes, shape, direction)
        return flipped


@dataclass(frozen=True)
class Split:
    """A pipeline in three parts. `settings` tells one deterministic part from another."""

    once: tuple[Transform, ...]
    middle: tuple[Transform, ...]
    on_device: OnDevice

    @property
    def settings(self) -> list[list[Any]]:
        return [
            [type(each).__name__, {key: value for key, value in sorted(vars(each).items()) if key != "file_client"}]
            for each in self.once
        ]


def split(transforms: Sequence[Transform]) -> Split:
    """The three parts of a built pipeline.

    Raises:
        CannotSplitError: if its beginning or end is not made of mmdet's own transforms, in their usual order.
    """
    rest = list(transforms)
    flip, normalize, pad, collect = _take_end(rest)
    once = _take_beginning(rest)
    return Split(
        tuple(once), tuple(rest), OnDevice(flip, normalize, pad, tuple(collect.keys), tuple(collect.meta_keys))
    )


def _take_end(rest: list[Transform]) -> tuple[Any, Any, Any, Any]:
    collect = _take_last(rest, Collect)
    unknown = [key for key in collect.keys if key not in KEYS]
    if unknown:
        raise CannotSplitError(f"Collect of {', '.join(unknown)}")
    bundle = _take_last(rest, DefaultFormatBundle)
    pad: Any = rest.pop() if rest and type(rest[-1]) is Pad else None
    if pad is not None and (pad.pad_to_square or pad.pad_val.get("img", 0) or pad.pad_val.get("masks", 0)):
        raise CannotSplitError("Pad to a square or with another value than 0")
    if bundle.pad_val.get("img", 0):
        raise CannotSplitError("DefaultFormatBundle that pads with another value than 0")
    normalize = _take_last(rest, Normalize)
    last: Any = rest[-1] if rest else None
    flip = rest.pop() if type(last) is RandomFlip and last.flip_ratio is not None else None
    return flip, normalize, pad, collect


def _take_last(rest: list[Transform], kind: type) -> Any:
    if not rest or type(rest[-1]) is not kind:
        found = type(rest[-1]).__name__ if rest else "nothing"
        raise CannotSplitError(f"{found} where {kind.__name__} was expected")
    return rest.pop()


def _take_beginning(rest: list[Transform]) -> list[Transform]:
    """The deterministic transforms that a pipeline begins with."""
    load: Any = rest[0] if rest else None
    if type(load) is not LoadImageFromFile:
        raise CannotSplitError(f"{type(load).__name__} where LoadImageFromFile was expected")
    if load.file_client_args.get("backend", "disk") != "disk" or not load.color_type.startswith("color"):
        raise CannotSplitError("LoadImageFromFile of other than colour images on disk")
    for each in rest:
        annotations: Any = each
        if isinstance(each, LoadAnnotations) and (
            annotations.with_seg or (annotations.with_mask and not annotations.poly2mask)
        ):
            raise CannotSplitError(f"{type(each).__name__} of polygons or segmentation maps")
    once = [rest.pop(0)]
    while rest and _is_deterministic(rest[0]):
        once.append(rest.pop(0))
    return once


def _is_deterministic(transform: Any) -> bool:
    if type(transform) is Resize:
        return transform.img_scale is not None and len(transform.img_scale) == 1 and transform.ratio_range is None
    if type(transform) is Pad:
        return not transform.pad_to_square
    return type(transform) is LoadAnnotations
