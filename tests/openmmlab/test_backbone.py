"""The backbone as mmdet's configs name it: arguments of `SwinTransformer`, pretrained weights, refusals."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mmdet")

import sparsevit.openmmlab  # noqa: F401, I001  makes mmdet importable
from mmdet.models import build_backbone
from mmdet.models.backbones.swin import SwinTransformer
from sparsevit.assets import asset
from sparsevit.errors import UserError

SMALL: dict[str, Any] = dict(embed_dims=8, depths=(2, 2, 2, 2), num_heads=(1, 1, 2, 2), drop_path_rate=0.0)


def build(**arguments: Any) -> Any:
    return build_backbone(dict(type="SparseViT", **{**SMALL, **arguments}))


def test_mmdet_alone_builds_a_config_that_imports_the_package(tmp_path: Path) -> None:
    config = tmp_path / "config.py"
    config.write_text(
        f"_base_ = {str(asset('configs', 'digits/mask_rcnn.py'))!r}\n"
        "model = dict(backbone=dict(pruning_ratios=[[0.3, 0.3], [0, 0], [0.1, 0.1, 0.2, 0.2, 0.2, 0.2], [0, 0]]))\n"
    )
    code = f"""
from mmcv import Config
config = Config.fromfile({str(config)!r})
from mmdet.models import build_detector
model = build_detector(config.model)
print(type(model.backbone).__name__, model.backbone.sparsity)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
    assert done.stdout.split() == ["SparseViT", "0.3/0/0.1,0.2,0.2/0"], done.stderr[-2000:]


def test_every_argument_of_mmdets_swin_is_taken() -> None:
    parameters = inspect.signature(SwinTransformer.__init__).parameters.items()
    defaults = {name: one.default for name, one in parameters if name != "self"}
    assert {"strides", "convert_weights", "init_cfg", "with_cp"} <= defaults.keys()
    ours, theirs = build_backbone(dict(type="SparseViT", **defaults)), SwinTransformer(**defaults)
    shapes = [{key: value.shape for key, value in one.state_dict().items()} for one in (ours, theirs)]
    assert shapes[0] == shapes[1]


def test_ratio_0_equals_mmdets_swin() -> None:
    torch.manual_seed(0)
    swin, sparse = SwinTransformer(**SMALL), build()
    swin.eval()
    sparse.eval()
    sparse.load_state_dict(swin.state_dict())
    image = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        for ours, theirs in zip(sparse(image), swin(image), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (dict(strides=(4, 2, 2, 1)), "strides must be the patch size and then 2"),
        (dict(strides=(2, 2, 2, 2)), "strides must be the patch size and then 2"),
        (dict(act_cfg=dict(type="ReLU")), "GELU"),
        (dict(norm_cfg=dict(type="BN")), "LayerNorm"),
        (dict(pretrained="a.pth", init_cfg=dict(type="Pretrained", checkpoint="b.pth")), "not both"),
        (dict(init_cfg=dict(type="Xavier")), "init_cfg can only be of type Pretrained"),
        (dict(pruning_ratios=[0.3, 0, 0.1]), "does not fit a backbone"),
        (dict(pruning_ratios=1.5), "1.5"),
        (dict(num_heads=(3, 3, 3, 3)), "does not divide"),
    ],
)
def test_other_architectures_are_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        build(**arguments)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("source", ["backbone", "detector", "classifier"])
def test_pretrained_weights_are_loaded(tmp_path: Path, source: str) -> None:
    torch.manual_seed(1)
    weights = {key: value + 1 if value.is_floating_point() else value for key, value in build().state_dict().items()}
    if source == "detector":
        weights = {f"backbone.{key}": value for key, value in weights.items()} | {"neck.w": torch.ones(1)}
    if source == "classifier":
        weights = {key: value for key, value in weights.items() if not key.startswith("norm")}
        weights |= {"norm.weight": torch.ones(64), "head.weight": torch.ones(10, 64)}
    torch.save({"state_dict": weights}, tmp_path / "weights.pth")
    model = build(pretrained=str(tmp_path / "weights.pth"), convert_weights=True)
    model.init_weights()
    for key, value in model.state_dict().items():
        saved = weights.get(f"backbone.{key}" if source == "detector" else key)
        if saved is not None:
            assert torch.equal(value, saved), key


def test_pretrained_weights_of_another_backbone_are_refused(tmp_path: Path) -> None:
    torch.save({"model": {"layers.0.blocks.0.attn.qkv.weight": torch.ones(2)}}, tmp_path / "swin.pth")
    model = build(init_cfg=dict(type="Pretrained", checkpoint=str(tmp_path / "swin.pth")))
    with pytest.raises(UserError, match=r"another model; keys: \d+ missing .*1 unknown \(layers\.0"):
        model.init_weights()
