"""One picture of what a subnet looks at: an image with its detections, and beside it what each layer computes of it."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

    from sparsevit.search.scene import LayerWindows, Scene

SIDE = 300
"""Pixels of a panel's longer side."""

GAP, CAPTION = 8, 20
DARK = 0.8
"""Share of light that a token loses where no block of a layer computes it."""

BOX = (230, 159, 0)
INK, PAPER = (30, 30, 30), (255, 255, 255)


def windows_sheet(scene: Scene, names: Sequence[str]) -> bytes:
    """A JPEG file: a panel for the image, then one for each layer, dark where it skips windows.

    Args:
        scene: an image under a sparsity.
        names: of the layers, first to last.

    Raises:
        ImportError: if Pillow is not installed.
    """
    from PIL import Image, ImageDraw

    panels = [(_with_boxes(scene), f"{len(scene.detections)} detections")]
    panels += [
        (_darkened(scene.image, layer), f"{name}: {layer.kept} of {layer.windows} windows")
        for name, layer in zip(names, scene.layers, strict=True)
    ]
    columns = math.ceil(math.sqrt(len(panels)))
    width, height = panels[0][0].size
    across, down = width + GAP, height + CAPTION + GAP
    sheet = Image.new("RGB", (columns * across + GAP, -(-len(panels) // columns) * down + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for place, (panel, caption) in enumerate(panels):
        x, y = GAP + place % columns * across, GAP + place // columns * down
        draw.text((x, y + 2), caption, fill=INK)
        sheet.paste(panel, (x, y + CAPTION))
    stream = io.BytesIO()
    sheet.save(stream, "JPEG", quality=85)
    return stream.getvalue()


def _small(pixels: NDArray[Any]) -> Image:
    from PIL import Image

    picture = Image.fromarray(pixels)
    share = SIDE / max(picture.size)
    return picture.resize((max(1, round(picture.width * share)), max(1, round(picture.height * share))))


def _with_boxes(scene: Scene) -> Image:
    from PIL import ImageDraw

    picture = _small(scene.image)
    draw = ImageDraw.Draw(picture)
    for one in scene.detections:
        corners = [one.left * picture.width, one.top * picture.height, one.right * picture.width]
        draw.rectangle([*corners, one.bottom * picture.height], outline=BOX, width=2)
    return picture


def _darkened(image: NDArray[Any], layer: LayerWindows) -> Image:
    height, width = image.shape[:2]
    rows, columns = layer.computed.shape
    # Each pixel takes the light of its token.
    light = layer.computed[(np.arange(height) * rows // height)[:, None], np.arange(width) * columns // width]
    return _small((image * (1 - DARK * (1 - light))[..., None]).astype(np.uint8))
