"""What a subnet does with one image, seen through the search's default evaluator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet")

from sparsevit.search.scene import Illustrated
from sparsevit.sparsity import Sparsity, windows_per_stage

FOUND = Sparsity.of("0.3/0/0.1,0.2,0.2/0", (2, 2, 6, 2))


def test_an_image_with_its_windows_and_detections(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsevit.openmmlab import detector_evaluator, scenes
    from sparsevit.openmmlab.config import build_model, load_config

    torch.manual_seed(0)
    weights = Path("weights.pth").resolve()
    torch.save({"state_dict": build_model(load_config(tiny())).state_dict()}, weights)
    judge: Any = detector_evaluator(config=str(tiny()), checkpoint=str(weights))
    assert isinstance(judge, Illustrated)
    assert judge.scenes() > 1
    monkeypatch.setattr(scenes, "LEAST_SCORE", 0.0)  # of an untrained detector nothing is certain
    scene = judge.scene(FOUND, 1)
    height, width = scene.image.shape[:2]
    assert scene.image.dtype == np.uint8
    assert scene.image.std() > 0
    assert tuple(one.kept for one in scene.layers) == FOUND.kept(windows_per_stage((height, width)))
    assert scene.layers[0].computed.shape == (height // 4, width // 4)
    assert all(0 <= one.left <= one.right <= 1 and 0 <= one.top <= one.bottom <= 1 for one in scene.detections)
    scores = [one.score for one in scene.detections]
    assert scores == sorted(scores, reverse=True)
    again = judge.scene(FOUND, 1)
    assert np.array_equal(again.image, scene.image)
    assert list(again.detections) == list(scene.detections)
