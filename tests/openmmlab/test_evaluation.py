"""Metrics are COCO's, on the images asked for, the same each time and in any batch."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("mmdet")

from sparsevit.errors import UserError

# pycocotools' own decoding of masks, which only these tests use, is behind numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

STATS = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")


class Finds(nn.Module):
    """Stands in for a detector: its results are given by image, in order."""

    def __init__(self, results: list[Any]) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.results = iter(results)

    def forward(self, img: list[torch.Tensor], **_: Any) -> list[Any]:
        return [next(self.results) for _ in img[0]]


@pytest.fixture
def evaluation(tiny: Callable[..., Path]) -> Any:
    from sparsevit.openmmlab.config import load_config
    from sparsevit.openmmlab.evaluation import DetectorEvaluation

    return DetectorEvaluation.of_dataset(load_config(tiny()).data.test)


def found(evaluation: Any, what: str) -> list[Any]:
    """Made-up results of every image, in mmdet's form: a list per class of boxes, and of masks."""
    coco, rng = evaluation.dataset.coco, np.random.default_rng(0)
    results = []
    for image_id in evaluation.dataset.img_ids:
        boxes: list[list[list[float]]] = [[] for _ in range(10)]
        masks: list[list[Any]] = [[] for _ in range(10)]
        entries = coco.load_anns(coco.get_ann_ids(img_ids=[image_id]))
        for i, entry in enumerate(entries):
            x, y, width, height = entry["bbox"]
            mask = coco.annToMask(entry).astype(bool)
            if what == "missing" and i % 2:
                continue
            if what == "shifted":
                x, y, mask = x + width * 0.12, y + height * 0.05, np.roll(mask, (1, 2), (0, 1))
            label = entry["category_id"] - 1
            if what == "mixed" and rng.random() < 0.3:
                label = (label + 1) % 10
            boxes[label].append([x, y, x + width, y + height, rng.random()])
            masks[label].append(mask)
        if what == "empty":
            boxes, masks = [[] for _ in range(10)], [[] for _ in range(10)]
        results.append(([np.array(each, np.float32).reshape(-1, 5) for each in boxes], masks))
    return results


def reference(evaluation: Any, results: list[Any], kind: str) -> dict[str, float]:
    """pycocotools' own figures."""
    from pycocotools import mask as coco_mask
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    ids = evaluation.dataset.img_ids[: len(results)]
    entries = []
    for image_id, (boxes, masks) in zip(ids, results, strict=True):
        for label in range(10):
            for (x1, y1, x2, y2, score), mask in zip(boxes[label].tolist(), masks[label], strict=True):
                place = {"bbox": [x1, y1, x2 - x1, y2 - y1]}
                if kind == "segm":
                    place = {"segmentation": coco_mask.encode(np.asfortranarray(mask, np.uint8))}
                entries.append({"image_id": image_id, "category_id": label + 1, "score": score, **place})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(evaluation.dataset.ann_file)
        judge = COCOeval(truth, truth.loadRes(entries), kind)
        judge.params.imgIds = ids
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return {name: max(0.0, float(value)) for name, value in zip(STATS, judge.stats, strict=False)}


@pytest.mark.parametrize("images", [None, 2])
@pytest.mark.parametrize("what", ["perfect", "shifted", "missing", "mixed"])
def test_figures_are_those_of_pycocotools(evaluation: Any, what: str, images: int | None) -> None:
    results = found(evaluation, what)
    figures = evaluation.metrics(Finds(results), images=images)
    for kind in ("bbox", "segm"):
        expected = reference(evaluation, results[:images], kind)
        assert {name: figures[f"{kind}_{name}"] for name in STATS} == pytest.approx(expected, abs=1e-9)
    if what == "perfect":
        assert figures["bbox_mAP"] == figures["segm_mAP"] == 1
    else:
        assert 0 < figures["bbox_mAP"] < 1


def test_no_detection_at_all_is_0(evaluation: Any) -> None:
    figures = evaluation.metrics(Finds(found(evaluation, "empty")))
    assert set(figures) == {f"{kind}_{name}" for kind in ("bbox", "segm") for name in STATS}
    assert set(figures.values()) == {0.0}


def test_a_model_without_masks_has_box_figures_alone(evaluation: Any) -> None:
    figures = evaluation.metrics(Finds([boxes for boxes, _ in found(evaluation, "perfect")]))
    assert set(figures) == {f"bbox_{name}" for name in STATS}


@pytest.fixture
def detector(tiny: Callable[..., Path]) -> tuple[nn.Module, Any]:
    """A detector that already finds some digits, a bit at random, and its config."""
    from sparsevit.openmmlab.config import build_model, load_config

    torch.manual_seed(0)
    config = load_config(tiny())
    model = build_model(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("rpn_cls.weight", "fc_cls.weight", "conv_logits.weight")):
                parameter.mul_(100)
    return model, config


def test_batches_and_repetition_change_nothing(
    detector: tuple[nn.Module, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparsevit.openmmlab.coco_scoring import Scoring
    from sparsevit.openmmlab.evaluation import DetectorEvaluation

    model, config = detector
    model.train()
    steps: list[int] = []
    seen: list[Any] = []
    add = Scoring.add

    def noting(self: Scoring, found: Any) -> None:
        seen.append(found)
        add(self, found)

    monkeypatch.setattr(Scoring, "add", noting)

    def step(advance: int, note: str = "") -> None:
        steps.append(advance)

    alone = DetectorEvaluation.of_dataset(config.data.test)
    once = alone.metrics(model, step=step)
    assert steps == [1, 1, 1, 1]
    assert model.training is False
    assert alone.metrics(model) == once
    steps.clear()
    batched = DetectorEvaluation.of_dataset(config.data.test, batch=3)
    assert batched.metrics(model, step=step) == pytest.approx(once, abs=1e-6)
    assert steps == [3, 1]
    first, again, other = seen[:4], seen[4:8], seen[8:]
    assert [len(each.score) for each in first] == [10] * 4
    for one, two in zip(first, again, strict=True):
        for name in ("image", "label", "box", "score"):
            np.testing.assert_array_equal(getattr(two, name), getattr(one, name))
        assert torch.equal(two.masks.begin, one.masks.begin)
        assert torch.equal(two.masks.end, one.masks.end)
    for name in ("image", "label", "box", "score"):
        in_batches, alone_ = (np.concatenate([getattr(each, name) for each in part]) for part in (other, first))
        np.testing.assert_allclose(in_batches, alone_, atol=1e-3, rtol=1e-5)
    areas = [torch.cat([each.masks.areas() for each in part]).numpy() for part in (other, first)]
    np.testing.assert_allclose(*areas, rtol=0.01, atol=1)


def test_masks_are_left_out_where_they_are_not_asked_for(
    evaluation: Any, detector: tuple[nn.Module, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = detector[0]
    both = evaluation.metrics(model)
    monkeypatch.setattr(model.roi_head.mask_head, "forward", None)
    boxes = evaluation.metrics(model, masks=False)
    assert boxes == {key: value for key, value in both.items() if key.startswith("bbox")}
    results = found(evaluation, "mixed")
    expected = {key: value for key, value in evaluation.metrics(Finds(results)).items() if key.startswith("bbox")}
    assert evaluation.metrics(Finds(results), masks=False) == expected  # a model that mmdet's own heads test


@pytest.mark.parametrize("batched", [True, False])
def test_another_backbone_runs_in_the_place_of_the_models_own(
    evaluation: Any, detector: tuple[nn.Module, Any], monkeypatch: pytest.MonkeyPatch, batched: bool
) -> None:
    from sparsevit.engine import accelerate
    from sparsevit.openmmlab import batched_test

    model: Any = detector[0].eval()
    expected = evaluation.metrics(model)
    own = model.backbone
    fast = accelerate(own)
    if not batched:
        monkeypatch.setattr(batched_test, "fits", lambda model: False)
    monkeypatch.setattr(own, "forward", None)
    assert evaluation.metrics(model, backbone=fast) == pytest.approx(expected, abs=1e-6)
    assert model.backbone is own


def test_the_first_images_are_judged(
    evaluation: Any, detector: tuple[nn.Module, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparsevit.openmmlab.batched_test import BatchedTest

    seen: list[str] = []
    model, _ = detector
    detect = BatchedTest.detect

    def noting(self: BatchedTest, features: Any, metas: Any) -> Any:
        seen.extend(meta["ori_filename"] for meta in metas)
        return detect(self, features, metas)

    monkeypatch.setattr(BatchedTest, "detect", noting)
    evaluation.metrics(model, images=2)
    evaluation.metrics(model, images=99)
    names = [f"val/{number:06d}.jpg" for number in range(1, 5)]
    assert seen == names[:2] + names


def test_the_cache_of_images_is_bounded(
    evaluation: Any, detector: tuple[nn.Module, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparsevit.openmmlab import evaluation as module

    monkeypatch.setattr(module, "CACHE_BYTES", 2 * 3 * 128 * 128 * 4 + 1)  # two images, in float32
    opened: list[int] = []
    dataset = evaluation.dataset
    monkeypatch.setattr(type(dataset), "__getitem__", _noting(type(dataset).__getitem__, opened))
    first = evaluation.metrics(detector[0])
    assert evaluation.metrics(detector[0]) == first
    assert opened == [0, 1, 2, 3, 2, 3]


def _noting(function: Any, opened: list[int]) -> Any:
    def wrapped(self: Any, index: int) -> Any:
        opened.append(index)
        return function(self, index)

    return wrapped


def test_the_built_in_data_set_shows_that_it_is_drawn(
    tiny: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from sparsevit.openmmlab.config import load_config
    from sparsevit.openmmlab.evaluation import DetectorEvaluation

    settings = load_config(tiny(), {"data.test.folder": str(tmp_path / "new")}).data.test
    assert len(DetectorEvaluation.of_dataset(settings)) == 4
    out = capsys.readouterr().out
    assert "drawing val images: 4/4" in out
    assert "loading annotations" not in out
    DetectorEvaluation.of_dataset(settings)
    assert capsys.readouterr().out == ""


def refusal(config: Path, **options: Any) -> str:
    from sparsevit.openmmlab.config import load_config
    from sparsevit.openmmlab.evaluation import DetectorEvaluation

    with pytest.raises(UserError) as error:
        DetectorEvaluation.of_dataset(load_config(config, options).data.test)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_data_sets_that_cannot_be_read_are_one_line(tiny: Callable[..., Path], tmp_path: Path) -> None:
    coco = "\ndata = dict(test=dict(_delete_=True, type='CocoDataset', ann_file='ann.json', pipeline=test_pipeline))\n"
    config = tiny(more=coco)
    assert refusal(config) == "the data set's file is not there: ann.json"
    Path("ann.json").write_text("{")
    assert "the annotation file ann.json is not JSON, or only part of it: " in refusal(config)
    Path("ann.json").write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    assert refusal(config) == "the data set ann.json holds no image"
    assert "cannot read the data set ann.json: KeyError: 'Unheard" in refusal(config, **{"data.test.type": "Unheard"})
    assert "'surprise'" in refusal(config, **{"data.test.surprise": 1})


def test_an_image_that_is_gone_is_one_line(tiny: Callable[..., Path], detector: Any, tmp_path: Path) -> None:
    from sparsevit.openmmlab.config import load_config
    from sparsevit.openmmlab.evaluation import DetectorEvaluation

    evaluation = DetectorEvaluation.of_dataset(load_config(tiny(), {"data.test.folder": str(tmp_path / "d")}).data.test)
    gone = next(tmp_path.glob("d/**/000003.jpg"))
    gone.unlink()
    with pytest.raises(UserError, match=r"image is not there: .*000003\.jpg"):
        evaluation.metrics(detector[0])


def test_augmented_testing_is_refused(tiny: Callable[..., Path], detector: Any) -> None:
    from sparsevit.openmmlab.config import load_config
    from sparsevit.openmmlab.evaluation import DetectorEvaluation

    settings = load_config(tiny()).data.test
    settings.pipeline[1].flip = True
    settings.pipeline[1].transforms.insert(1, dict(type="RandomFlip"))
    with pytest.raises(UserError, match="flip=False"):
        DetectorEvaluation.of_dataset(settings).metrics(detector[0])
