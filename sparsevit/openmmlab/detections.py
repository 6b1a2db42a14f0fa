"""What a detector found in some images, as arrays; from mmdet's own results too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsevit.openmmlab.mask_overlaps import all_runs
from sparsevit.openmmlab.mask_runs import Runs


@dataclass(frozen=True, eq=False)
class Detections:
    """Everything found in some images, image by image, best first in each class.

    Attributes:
        image: index of the image, `(R,)`.
        label: class, `(R,)`.
        box: left, top, right and bottom edge in pixels of the original image, `(R, 4)`.
        score: `(R,)`.
        masks: of that image, where they lie; None if they were not asked for.
        size: height and width of the image that a mask is of, `(R, 2)`; None as `masks`.
    """

    image: NDArray[np.int64]
    label: NDArray[np.int64]
    box: NDArray[np.float32]
    score: NDArray[np.float32]
    masks: Runs | None = None
    size: NDArray[np.int64] | None = None

    @classmethod
    def of_results(cls, images: Sequence[int], results: Sequence[Any], *, masks: bool) -> Detections:
        """From mmdet's results of these images: of each a list by class of boxes `(n, 5)`, maybe with one of masks."""
        boxes = [result[0] if isinstance(result, tuple) else result for result in results]
        counts = [[len(rows) for rows in each] for each in boxes]
        rows = np.concatenate([np.zeros((0, 5), np.float32), *(rows for each in boxes for rows in each)])
        found: dict[str, Any] = {}
        if masks and all(isinstance(result, tuple) for result in results):
            drawn = [mask for result in results for per_class in result[1] for mask in per_class]
            sizes = [mask["size"] if isinstance(mask, dict) else mask.shape for mask in drawn]
            found = {"masks": all_runs(drawn), "size": np.array(sizes, np.int64).reshape(-1, 2)}
        return cls(
            image=np.repeat(np.asarray(images, np.int64), [sum(each) for each in counts]),
            label=np.concatenate([np.repeat(np.arange(len(each)), each) for each in counts]).astype(np.int64),
            box=rows[:, :4],
            score=rows[:, 4],
            **found,
        )
