"""The anchors of feature maps of one size, kept from one iteration to the next: making them takes a hundred launches.

A anchors over all levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsevit.openmmlab.box_coding import constant


@dataclass(frozen=True)
class AnchorGrid:
    """Anchors of every level, by row, column and shape.

    Attributes:
        key: what they depend on, sizes of the maps and device.
        levels: `(anchors, 4)` each, in pixels.
        together: all of them, `(A, 4)`.
        corners: top left corner of the cell of each, `(A, 2)`, x and y in pixels.
        reach: x and y of the last cells' corners, in pixels.
    """

    key: Any
    levels: list[Tensor]
    together: Tensor
    corners: Tensor
    reach: tuple[int, int]

    @classmethod
    def of(cls, generator: Any, maps: Sequence[Tensor], before: AnchorGrid | None = None) -> AnchorGrid:
        """Those that mmdet's `AnchorGenerator` makes for maps `(B, C, H, W)`; `before`, if they are the same."""
        sizes = [tuple(each.shape[-2:]) for each in maps]
        key = (sizes, maps[0].device)
        if before is not None and before.key == key:
            return before
        levels: list[Tensor] = generator.grid_priors(sizes, device=maps[0].device)
        corners = [
            torch.cartesian_prod(torch.arange(height) * stride[1], torch.arange(width) * stride[0])
            .flip(1)
            .repeat_interleave(anchors, dim=0)
            for (height, width), stride, anchors in zip(
                sizes, generator.strides, generator.num_base_anchors, strict=True
            )
        ]
        together = torch.cat(corners)
        x, y = together.amax(dim=0).tolist()
        return cls(key, levels, torch.cat(levels), together.to(maps[0].device), (x, y))

    def inside(self, sizes: Sequence[tuple[int, int]]) -> Tensor | None:
        """Which anchors' cells begin on the image rather than on what fills the batch up, `(B, A)`; None: all.

        Args:
            sizes: height and width of each image in pixels.
        """
        if all(height > self.reach[1] and width > self.reach[0] for height, width in sizes):
            return None
        limits = constant([(width, height) for height, width in sizes], self.corners)
        return (self.corners < limits[:, None]).all(dim=2)
