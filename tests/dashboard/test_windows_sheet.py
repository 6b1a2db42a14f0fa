from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from sparsevit.dashboard.windows_sheet import BOX, CAPTION, DARK, GAP, SIDE, windows_sheet
from sparsevit.search.scene import Detection, LayerWindows, Scene

Image = pytest.importorskip("PIL.Image")


def scene(layers: int = 3, *, height: int = 120, width: int = 200) -> Scene:
    """A grey image; layer n computes the left half alone."""
    computed = np.zeros((6, 10))
    computed[:, :5] = 1
    return Scene(
        image=np.full((height, width, 3), 200, np.uint8),
        layers=[LayerWindows(kept=1, windows=4, computed=computed)] * layers,
        detections=[Detection(0.25, 0.25, 0.75, 0.75, "seven", 0.9)],
    )


def pixels(content: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def test_layers_are_dark_where_they_skip_windows() -> None:
    found = pixels(windows_sheet(scene(), ["s1", "s2", "s3"]))
    height = SIDE * 120 // 200
    assert found.shape == (2 * (height + CAPTION + GAP) + GAP, 2 * (SIDE + GAP) + GAP, 3)
    panel = found[GAP + CAPTION : GAP + CAPTION + height, 2 * GAP + SIDE : 2 * GAP + 2 * SIDE]
    assert abs(panel[16:-16, 16 : SIDE // 2 - 16] - 200).max() <= 2
    assert abs(panel[16:-16, SIDE // 2 + 16 : -16] - 200 * (1 - DARK)).max() <= 2


def test_detections_are_framed_on_the_image_alone() -> None:
    found = pixels(windows_sheet(scene(), ["s1", "s2", "s3"]))
    rows, columns = np.nonzero(abs(found - BOX).max(axis=2) < 60)
    assert rows.max() < GAP + CAPTION + SIDE * 120 // 200
    assert columns.min() == pytest.approx(GAP + SIDE / 4, abs=2)
    assert columns.max() == pytest.approx(GAP + SIDE * 3 / 4, abs=2)


@pytest.mark.parametrize(("height", "width"), [(1, 900), (900, 3), (17, 17)])
def test_images_of_any_shape(height: int, width: int) -> None:
    assert max(pixels(windows_sheet(scene(6, height=height, width=width), list("abcdef"))).shape) > SIDE


def test_a_sheet_stays_small() -> None:
    assert len(windows_sheet(scene(12, height=1200, width=2000), list("abcdefghijkl"))) < 200_000
