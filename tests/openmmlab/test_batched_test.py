"""Testing in batches finds what mmdet's own heads find, image by image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet")

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

STOCK = "model = dict(rpn_head=dict(type='RPNHead'), roi_head=dict(type='StandardRoIHead'))\n"
BY_CLASS = (
    "model = dict(roi_head=dict(bbox_head=dict(reg_class_agnostic=False), mask_head=dict(class_agnostic=False)))\n"
)


def lively(config: Any) -> Any:
    """A detector with random weights that finds many things, and no two of them the same."""
    from sparsevit.openmmlab.config import build_model

    torch.manual_seed(0)
    model = build_model(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("rpn_cls.weight", "fc_cls.weight", "conv_logits.weight")):
                parameter.mul_(100)
            if name.endswith(("rpn_reg.weight", "fc_reg.weight")):
                parameter.mul_(20)
    return model


def metas(shapes: list[tuple[int, int]], pad: tuple[int, int]) -> list[dict[str, Any]]:
    """Of images whose originals had other shapes, and which are padded to one."""
    made = []
    for number, (height, width) in enumerate(shapes):
        factor = np.array([1.0 + 0.3 * number, 0.7, 1.0 + 0.3 * number, 0.7], np.float32)
        original = (round(height / float(factor[1])), round(width / float(factor[0])), 3)
        made.append({
            "ori_shape": original, "img_shape": (height, width, 3), "pad_shape": (*pad, 3), "scale_factor": factor,
            "flip": False, "filename": "", "ori_filename": "",
        })  # fmt: skip
    return made


def both(model: Any, images: torch.Tensor, about: list[dict[str, Any]]) -> tuple[list[Any], Any]:
    """mmdet's results, and the detections of the batch."""
    from sparsevit.openmmlab.batched_test import BatchedTest, fits

    assert fits(model)
    tester = BatchedTest(model)
    with torch.inference_mode():
        # One image at a time: mmdet pads a batch of proposals by none, and sorts each image's on its own.
        plain = [
            model(return_loss=False, rescale=True, img=[image[None]], img_metas=[[dict(meta)]])[0]
            for image, meta in zip(images, about, strict=True)
        ]
        found = tester.detect(model.backbone(images), about)
        return plain, tester.detections(found, found.packed.numpy(), range(len(images)), masks=tester.masks)


def assert_same(plain: list[Any], batched: Any) -> int:
    """Returns how many objects were found."""
    objects = 0
    for image, (boxes, masks) in enumerate(plain):
        for label, each in enumerate(boxes):
            own = ((batched.image == image) & (batched.label == label)).nonzero()[0]
            assert len(own) == len(masks[label]) == len(each)
            np.testing.assert_allclose(batched.box[own], each[:, :4], atol=2e-3, rtol=1e-4)
            np.testing.assert_allclose(batched.score[own], each[:, 4], atol=2e-3, rtol=1e-4)
            objects += len(each)
            for one, other in zip(own.tolist(), masks[label], strict=True):
                assert tuple(batched.size[one]) == other.shape
                drawn = bitmap(batched.masks, one, other.shape)
                assert (drawn != other).sum() <= max(2, 0.01 * other.sum())
    assert objects == len(batched.score) == batched.masks.count
    return objects


def bitmap(runs: Any, mask: int, size: tuple[int, int]) -> np.ndarray:
    """One of the masks, drawn."""
    flat = np.zeros(size[0] * size[1], bool)
    own = runs.owner == mask
    for begin, end in zip(runs.begin[own].tolist(), runs.end[own].tolist(), strict=True):
        flat[begin:end] = True
    return flat.reshape(size, order="F")


@pytest.mark.parametrize("more", ["", STOCK, BY_CLASS], ids=["batched heads", "mmdet's heads", "a box for each class"])
def test_images_of_several_sizes_in_one_batch(tiny: Callable[..., Path], more: str) -> None:
    from sparsevit.openmmlab.config import load_config

    config = load_config(tiny())
    config.merge_from_dict(_as_options(more))
    model = lively(config)
    images = torch.randn(3, 3, 128, 160, generator=torch.Generator().manual_seed(1))
    about = metas([(128, 160), (100, 131), (57, 160)], (128, 160))
    plain, batched = both(model, images, about)
    assert assert_same(plain, batched) == 30


def _as_options(text: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    exec(text, found)
    found.pop("__builtins__", None)
    return found


@pytest.mark.parametrize("sparsity", ["dense", "0.6"])
def test_the_built_in_detector(data_folder: Path, sparsity: str) -> None:
    from sparsevit.openmmlab.config import build_model, load_config
    from sparsevit.openmmlab.evaluation import DetectorEvaluation

    config = load_config("builtin:digits/supernet.py", {"data.test.images": 3, "data.test.folder": str(data_folder)})
    model: Any = build_model(config, "builtin:digits").eval()
    model.backbone.sparsity = sparsity
    evaluation = DetectorEvaluation.of_dataset(config.data.test, batch=3)
    images, about = zip(*(evaluation.image(index) for index in range(3)), strict=True)
    plain, batched = both(model, torch.stack(images), list(about))
    assert assert_same(plain, batched) > 10


def test_nothing_found_is_nothing(tiny: Callable[..., Path]) -> None:
    from sparsevit.openmmlab.config import load_config

    config = load_config(tiny(), {"model.test_cfg.rcnn.score_thr": 1.0})
    about = metas([(128, 128), (90, 128)], (128, 128))
    _, batched = both(lively(config), torch.randn(2, 3, 128, 128), about)
    assert batched.box.shape == (0, 4)
    assert batched.masks.count == len(batched.masks.owner) == len(batched.score) == 0


@pytest.mark.parametrize(
    "option",
    [
        {"model.test_cfg.rcnn.nms": {"type": "soft_nms", "iou_threshold": 0.5}},
        {"model.test_cfg.rcnn.nms.class_agnostic": True},
        {"model.test_cfg.rpn.max_per_img": -1},
        {"model.test_cfg.rcnn.mask_thr_binary": -1},
        {"model.rpn_head.anchor_generator.type": "LegacyAnchorGenerator"},
    ],
)
def test_other_rules_stay_with_mmdets_own_heads(tiny: Callable[..., Path], option: dict[str, Any]) -> None:
    from sparsevit.openmmlab.batched_test import fits
    from sparsevit.openmmlab.config import build_model, load_config

    config = tiny()
    assert fits(build_model(load_config(config)))
    assert not fits(build_model(load_config(config, option)))


@pytest.mark.parametrize("name", ["mask_rcnn_swin_t_dense.py", "faster_rcnn_swin_t.py"])
def test_the_configs_for_coco_are_tested_in_batches(name: str) -> None:
    import sparsevit.openmmlab  # noqa: F401
    from sparsevit.openmmlab.batched_test import fits
    from sparsevit.openmmlab.config import build_model, load_config

    options = {"model.backbone.embed_dims": 8, "model.backbone.num_heads": [1, 1, 1, 1], "load_from": None}
    options |= {"model.neck.in_channels": [8, 16, 32, 64], "model.backbone.init_cfg": None}
    assert fits(build_model(load_config(f"builtin:coco/{name}", options)))
