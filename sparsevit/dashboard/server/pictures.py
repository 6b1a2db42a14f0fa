"""Small PNG pictures as `data:` addresses: an image, and what lies over it."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsevit.search.scene import LayerWindows

LONGEST = 480
"""Pixels of the longer side of an image on a page."""

SKIPPED = (11, 19, 43)
"""Colour laid over what no block of a layer computes."""


def image_png(image: NDArray[Any]) -> bytes:
    """An image `(height, width, 3)` as PNG, every n-th pixel of it where it is large."""
    step = -(-max(image.shape[:2]) // LONGEST)
    return png(np.ascontiguousarray(image[::step, ::step]))


def overlay(layer: LayerWindows) -> str:
    """A transparent picture, a pixel per token: dark where the layer skips it, half dark where one block of it does."""
    skipped = 1 - layer.computed
    pixels = np.zeros((*skipped.shape, 4), np.uint8)
    pixels[..., :3] = SKIPPED
    pixels[..., 3] = np.round(skipped * 205)
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode()


def png(pixels: NDArray[Any]) -> bytes:
    """Pixels `(height, width, 3 or 4)`, uint8, as a PNG file (RFC 2083)."""
    height, width, channels = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, {3: 2, 4: 6}[channels], 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 6)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in parts)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
