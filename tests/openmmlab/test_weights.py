"""Weights of any key format in detectors and their backbones, from every place that names a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

pytest.importorskip("mmdet")

import sparsevit.openmmlab  # noqa: F401
from sparsevit.errors import UserError
from sparsevit.model.weights import FORMATS, as_format, as_mmdet, write_weights
from sparsevit.openmmlab.config import build_model, load_backbone, load_config
from sparsevit.openmmlab.train import train
from sparsevit.openmmlab.weights import load_backbone_weights, load_weights

Weights = dict[str, Tensor]
Tiny = Callable[..., Path]


def detector(config: Path, **options: Any) -> Any:
    torch.manual_seed(5)
    return build_model(load_config(config, options))


def backbone_weights(model: Any) -> Weights:
    return {
        key: value + 1 if value.is_floating_point() else value for key, value in model.backbone.state_dict().items()
    }


def classifier(model: Any) -> Weights:
    """The backbone's weights as a classifier has them: no norms of feature maps, but its own norm and a head."""
    bare = {key: value for key, value in backbone_weights(model).items() if not key.startswith("norm")}
    return {**bare, "norm.weight": torch.ones(64), "norm.bias": torch.ones(64), "head.weight": torch.ones(10, 64)}


def holds(model: Any, weights: Weights) -> bool:
    own = model.state_dict()
    return all(torch.equal(own[key], value) for key, value in weights.items() if key in own)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("to", FORMATS)
def test_detectors_in_every_key_format(tiny: Tiny, to: Any, suffix: str) -> None:
    model = detector(tiny())
    weights = {key: value + 1 if value.is_floating_point() else value for key, value in model.state_dict().items()}
    write_weights(as_format(weights, to), Path(f"all.{suffix}"))
    load_weights(model, f"all.{suffix}")
    assert holds(model, weights)
    assert holds(build_model(load_config("tiny.py"), f"all.{suffix}"), weights)


@pytest.mark.parametrize("what", [backbone_weights, classifier], ids=["backbone", "classifier"])
@pytest.mark.parametrize("to", FORMATS)
def test_backbones_in_every_key_format(
    tiny: Tiny, to: Any, what: Callable[[Any], Weights], capsys: pytest.CaptureFixture[str]
) -> None:
    expected = what(detector(tiny()))
    write_weights(as_format(expected, to), Path("swin.pth"))
    model = detector(tiny(), **{"model.backbone.init_cfg": {"type": "Pretrained", "checkpoint": "swin.pth"}})
    assert holds(model.backbone, expected)
    model = detector(tiny(), **{"model.backbone.pretrained": "swin.pth", "model.backbone.convert_weights": True})
    assert holds(model.backbone, expected)
    assert holds(load_backbone(tiny(), "swin.pth"), expected)
    # To train from it is fine, and the file stands in the place of what the config names.
    named = {"model.backbone.init_cfg": {"type": "Pretrained", "checkpoint": "https://example.org/gone.pth"}}
    capsys.readouterr()
    model = build_model(load_config(tiny(), named), "swin.pth", backbone_alone=True)
    assert holds(model.backbone, expected)
    assert "swin.pth: weights of a backbone alone; the rest of the detector starts afresh" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"holds the weights of a backbone alone, .* sparsevit adapt CONFIG swin\.pth"):
        build_model(load_config(tiny()), "swin.pth")


def test_training_starts_from_a_backbone_of_the_original_repository(tiny: Tiny) -> None:
    expected = backbone_weights(detector(tiny()))
    write_weights(as_format(expected, "swin"), Path("swin.pth"))
    options = {"load_from": "swin.pth", "optimizer.lr": 0.0, "optimizer.weight_decay": 0.0, "runner.max_epochs": 1}
    last = train(load_config(tiny(), options), Path("out"), device="cpu")
    trained = as_mmdet(torch.load(last, weights_only=True)["state_dict"])
    assert all(
        torch.equal(trained[f"backbone.{key}"], value)
        for key, value in expected.items()
        if not key.endswith("relative_position_index")
    )


def test_another_window_is_interpolated_and_said(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    write_weights(backbone_weights(detector(tiny(), **{"model.backbone.window_size": 4})), Path("swin.pth"))
    model = detector(tiny())
    capsys.readouterr()
    load_backbone_weights(model.backbone, "swin.pth")
    assert capsys.readouterr() == ("", "note: swin.pth: position bias tables of window 4 are interpolated to 7\n")


def test_norms_of_maps_that_are_not_used_are_left_out(tiny: Tiny) -> None:
    expected = backbone_weights(detector(tiny()))
    write_weights(expected, Path("swin.pth"))
    neck = {"model.neck.in_channels": [16, 32, 64]}
    model = detector(tiny(), **{"model.backbone.out_indices": [1, 2, 3], **neck})
    load_backbone_weights(model.backbone, "swin.pth")
    assert holds(model.backbone, expected)
    assert "norm0.weight" not in model.backbone.state_dict()


def test_another_architecture_lists_every_key(tiny: Tiny) -> None:
    deeper = detector(tiny(), **{"model.backbone.depths": [2, 2, 18, 2]})
    write_weights(as_format(deeper.state_dict(), "timm"), Path("deep.pth"))
    with pytest.raises(UserError, match=r"deep\.pth is a checkpoint of another model; keys: 156 unknown \(") as error:
        load_weights(detector(tiny()), "deep.pth")
    assert len(error.value.details) == 13
    assert "unknown:          backbone.stages.2.blocks.{6-17}.norm1.bias" in error.value.details


def test_mmdet_itself_reads_what_is_written(tiny: Tiny) -> None:
    from mmcv.runner import load_checkpoint
    from mmdet.models.backbones.swin import SwinTransformer
    from mmdet.models.utils.ckpt_convert import swin_converter

    arguments = dict(embed_dims=8, depths=(2, 2, 6, 2), num_heads=(1, 1, 1, 1))
    own = backbone_weights(detector(tiny()))
    theirs = SwinTransformer(**arguments)
    theirs.load_state_dict(as_format(own, "mmdet"))  # strict, so with the buffers that it computes
    # Its own way to read the original's keys, which makes a detector's of them, leads to ours.
    converted = swin_converter(as_format(own, "swin"))
    assert converted.keys() == {f"backbone.{key}" for key in own}
    assert all(torch.equal(converted[f"backbone.{key}"], value) for key, value in own.items())
    write_weights(own, Path("ours.pth"))
    theirs = SwinTransformer(**arguments)
    load_checkpoint(theirs, "ours.pth", map_location="cpu", strict=True)
    assert all(torch.equal(value, own[key]) for key, value in theirs.state_dict().items())


def test_a_checkpoint_that_mmcv_wrote(tiny: Tiny) -> None:
    from mmcv.runner import save_checkpoint

    model = detector(tiny())
    optimizer = torch.optim.AdamW(model.parameters())
    save_checkpoint(model, "epoch_1.pth", optimizer=optimizer, meta={"CLASSES": ("a",), "epoch": 1, "config": "x = 1"})
    other = build_model(load_config(tiny(), {"model.backbone.pruning_ratios": 0.5}), "epoch_1.pth")
    assert holds(other, model.state_dict())


class Counts(nn.Module):
    """A model with a weight and a table that can be computed."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("relative_position_index", torch.arange(4))


WEIGHTS = {"layer.weight": torch.arange(6.0).view(2, 3), "layer.bias": torch.ones(2)}


@pytest.mark.parametrize(
    "content",
    [
        WEIGHTS,
        {"state_dict": WEIGHTS, "meta": {"epoch": 1, "CLASSES": ["a"]}},
        {"model": WEIGHTS},
        {"state_dict": {f"module.{key}": value for key, value in WEIGHTS.items()}},
        {**WEIGHTS, "relative_position_index": torch.zeros(9)},
    ],
    ids=["plain", "mmcv", "swin", "parallel", "with table"],
)
def test_every_kind_of_checkpoint_is_read(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.pth")
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("a.pth", "old.pth"):
        model = Counts()
        load_weights(model, tmp_path / name)
        assert torch.equal(model.layer.weight, WEIGHTS["layer.weight"])
        assert torch.equal(model.relative_position_index, torch.arange(4))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_safetensors_of_half_precision_are_read(tmp_path: Path, prefix: str) -> None:
    save_file({prefix + key: value.half() for key, value in WEIGHTS.items()}, tmp_path / "a.safetensors")
    model = Counts()
    load_weights(model, str(tmp_path / "a.safetensors"))
    assert torch.equal(model.layer.weight, WEIGHTS["layer.weight"])


def test_a_checkpoint_of_another_model_names_the_keys(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"layer.weight": torch.ones(3, 3), **{f"extra{i}": torch.ones(1) for i in range(5)}}, path)
    with pytest.raises(UserError) as error:
        load_weights(Counts(), path)
    text = str(error.value)
    assert text.startswith(f"{path} is a checkpoint of another model")
    assert "1 missing (layer.bias)" in text
    assert "5 unknown (extra0, extra1, extra2, …)" in text
    assert "1 of another shape (layer.weight)" in text
