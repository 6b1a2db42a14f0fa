"""The configs of COCO: what they say, that they build at full size, and that every kind trains and is judged, small."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("mmdet")

import sparsevit.openmmlab  # noqa: F401
from sparsevit.assets import asset
from sparsevit.errors import UserError
from sparsevit.openmmlab.config import build_model, load_config
from sparsevit.search.spec import StudySpec
from sparsevit.sparsity import Sparsity, windows_per_stage

FOLDER = asset("configs", "coco/mask_rcnn_swin_t_dense.py").parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
DEPTHS = {"t": (2, 2, 6, 2), "s": (2, 2, 18, 2), "b": (2, 2, 18, 2)}
PAPER = {"cfg1": "0.3/0/0.1,0.2,0.2/0", "cfg2": "0.6/0/0.2,0.4,0.5/0", "cfg3": "0.7/0/0.2,0.4,0.5/0"}
KINDS = {
    "mask_rcnn_swin_t_saa": "MaskRCNN",
    "cascade_mask_rcnn_swin_t": "CascadeRCNN",
    "faster_rcnn_swin_t": "FasterRCNN",
    "retinanet_swin_t": "RetinaNet",
}


def config(name: str, options: dict[str, Any] | None = None) -> Any:
    return load_config(f"builtin:coco/{name}.py", options)


@pytest.fixture
def coco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A current folder with a tiny `data/coco/`, and the helpers that shrink a config."""
    from mmcv.runner import epoch_based_runner

    monkeypatch.syspath_prepend(Path(__file__).parent)
    import coco_tiny  # type: ignore[import-not-found]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(epoch_based_runner, "time", SimpleNamespace(sleep=lambda seconds: None))
    coco_tiny.write_coco(Path("data/coco"))
    return coco_tiny


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models without random weights: drawing a hundred million numbers takes longer than all else here."""
    from sparsevit.model.backbone import SparseSwin
    from sparsevit.openmmlab.backbone import SparseViT

    for kind in (SparseSwin, SparseViT):
        monkeypatch.setattr(kind, "init_weights", lambda self: None)


def test_all_that_is_promised_is_there() -> None:
    promised = {
        f"mask_rcnn_swin_{size}_{kind}" for size in DEPTHS for kind in ("dense", "saa", "supernet", *PAPER)
    } | KINDS.keys()
    assert set(NAMES) == promised


@pytest.mark.parametrize("name", NAMES)
def test_what_they_have_in_common(name: str) -> None:
    found = config(name)
    assert found.model.backbone.type == "SparseViT"
    assert found.data.train.ann_file == "data/coco/annotations/instances_train2017.json"
    assert found.optimizer.type == "AdamW"
    assert found.optimizer.weight_decay == 0.05
    free = {key for key, value in found.optimizer.paramwise_cfg.custom_keys.items() if value.decay_mult == 0}
    assert {"relative_position_bias_table", "norm"} <= free
    assert found.lr_config.warmup_iters == 1000
    saa = name.endswith("_saa")
    assert (found.runner.max_epochs, found.optimizer.lr) == ((12, 1e-5) if saa else (36, 1e-4))
    assert found.lr_config.step == ([8, 11] if saa else [27, 33])
    assert bool(found.get("random_sample")) == saa
    train, test = found.data.train.pipeline, found.data.test.pipeline[1]
    assert train[2].img_scale == train[5].size == test.img_scale == test.transforms[2].size == (672, 672)
    assert ("gt_masks" in train[-1]["keys"]) == (found.model.get("roi_head", {}).get("mask_head") is not None)
    heads = [key for key in ("rpn_head", "roi_head") if key in found.model]
    assert [found.model[key].type for key in heads if "Batched" in found.model[key].type] == []


@pytest.mark.parametrize("size", DEPTHS)
@pytest.mark.parametrize("name", PAPER)
def test_the_papers_ratios(size: str, name: str) -> None:
    found = config(f"mask_rcnn_swin_{size}_{name}")
    paper = Sparsity.parse(PAPER[name])
    stretch = DEPTHS[size][2] // 6
    stages = [
        tuple(one for one in stage for _ in range(stretch if i == 2 else 1)) for i, stage in enumerate(paper.stages)
    ]
    expected = Sparsity(tuple(stages))
    assert Sparsity.of(found.model.backbone.pruning_ratios, DEPTHS[size]) == expected
    (judged,) = found.evaluate_sparsities.sparsities.values()
    assert Sparsity.of(judged, DEPTHS[size]) == expected
    during = config(f"mask_rcnn_swin_{size}_saa").evaluate_sparsities.sparsities
    assert Sparsity.of(during[name], DEPTHS[size]) == expected
    assert Sparsity.of(during["dense"], DEPTHS[size]).is_dense


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("mask_rcnn_swin_t_dense", 47.8),
        ("mask_rcnn_swin_s_dense", 69.1),
        ("mask_rcnn_swin_b_dense", 107.1),
        ("cascade_mask_rcnn_swin_t", 80.7),
        ("faster_rcnn_swin_t", 45.2),
        ("retinanet_swin_t", 38.5),
    ],
)
def test_they_build_at_full_size(name: str, millions: float, light: None) -> None:
    model = build_model(config(name))
    assert sum(one.numel() for one in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


def test_no_stage_is_padded_at_their_size() -> None:
    assert windows_per_stage((672, 672)) == (576, 144, 36, 9)
    assert [168 // 2**stage % 7 for stage in range(4)] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("name", "stock"),
    [
        ("mask_rcnn_swin_t_dense", "mask_rcnn_swin-t-p4-w7_fpn_1x_coco"),
        ("mask_rcnn_swin_s_dense", "mask_rcnn_swin-s-p4-w7_fpn_fp16_ms-crop-3x_coco"),
        ("retinanet_swin_t", "retinanet_swin-t-p4-w7_fpn_1x_coco"),
    ],
)
def test_their_weights_are_those_of_mmdets_own_configs(name: str, stock: str, light: None) -> None:
    """And so every stock Swin config builds as it stands."""
    import mmdet

    file = Path(mmdet.__file__).parent / ".mim" / "configs" / "swin" / f"{stock}.py"
    theirs = load_config(file)
    theirs.model.backbone.init_cfg = None  # names a file on a server
    shapes = [
        {key: value.shape for key, value in build_model(each).state_dict().items()} for each in (config(name), theirs)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
@pytest.mark.parametrize("name", KINDS)
def test_each_kind_trains_and_is_judged(coco: ModuleType, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    from sparsevit.openmmlab.train import judge_all, train

    options = coco.small(**coco.small_heads(KINDS[name]), **{"evaluate_sparsities.batch": 1})
    options["evaluate_sparsities.images"] = 2
    settings = config(name, options)
    last = train(settings, Path("work"), device="cpu")
    assert last == Path("work/epoch_1.pth")
    said = capsys.readouterr().out
    loss = re.search(r"training: 1/1.* loss (\d+\.\d+)", said) or re.search(r"training: 2/2.* loss (\d+\.\d+)", said)
    assert loss is not None, said
    assert 0 < float(loss[1]) < 100
    assert "epoch 1, dense: bbox_mAP 0." in said
    for sparsity, metrics in judge_all(settings, last, ["dense", "0.6"], device="cpu", images=None):
        assert 0 <= metrics["bbox_mAP"] <= 1, sparsity
        assert ("segm_mAP" in metrics) == (KINDS[name] in ("MaskRCNN", "CascadeRCNN"))


def test_the_study_is_valid(tmp_path: Path) -> None:
    (tmp_path / "saa.pth").touch()
    spec = StudySpec.load(asset("studies", "coco_swin_t.toml"), [f"supernet.checkpoint={tmp_path / 'saa.pth'}"])
    assert load_config(str(spec.supernet.config)).model.type == "MaskRCNN"
    assert spec.target.size == (672, 672)
    assert len(spec.space.of((2, 2, 6, 2))) == 120_285
    with pytest.raises(UserError, match=r"supernet\.checkpoint.*there is no such file.*mask_rcnn_swin_t_saa/epoch_12"):
        StudySpec.load(asset("studies", "coco_swin_t.toml"))
