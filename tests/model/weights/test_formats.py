"""The formats of keys: told apart, read and written to the same bits, and equal in function to timm's models."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsevit.errors import UserError
from sparsevit.model import SparseSwin
from sparsevit.model.weights import FORMATS, KeyFormat, as_format, as_mmdet, key_format

Weights = dict[str, Tensor]
Small = Callable[..., SparseSwin]
Original = Callable[[SparseSwin], Weights]


def same(first: Weights, second: Weights) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert value.dtype == second[key].dtype
        assert torch.equal(value, second[key]), key


def timm_model(**arguments: Any) -> Any:
    timm = pytest.importorskip("timm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return timm.models.swin_transformer.SwinTransformer(
            embed_dim=8, depths=(2, 2, 3, 1), num_heads=(1, 2, 2, 4), window_size=4, always_partition=True, **arguments
        ).eval()


def randomised(model: Any) -> Weights:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return dict(model.state_dict())


def test_the_originals_keys_are_a_literal_renaming(small: Small, original: Original) -> None:
    model = small()
    theirs = original(model)
    assert key_format(theirs) == "swin"
    same(as_format(model.state_dict(), "swin"), theirs)
    ours = {key: value for key, value in model.state_dict().items() if "relative_position_index" not in key}
    same(as_mmdet(theirs), ours)


@pytest.mark.parametrize("prefix", ["", "backbone."])
@pytest.mark.parametrize("first", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_way_through_the_formats_ends_in_the_same_bits(
    small: Small, first: KeyFormat, prefix: str, dtype: torch.dtype
) -> None:
    model = small(use_abs_pos_embed=True, pretrain_img_size=64).to(dtype)
    weights = {prefix + key: value for key, value in model.state_dict().items()}
    if prefix:
        weights |= {"neck.fpn.weight": torch.randn(3), "roi_head.bbox_head.fc_cls.weight": torch.randn(2, 4)}
    else:  # a classifier
        weights |= {"norm.weight": torch.randn(64), "head.weight": torch.randn(10, 64)}
    start = as_format(weights, first)
    assert key_format(start) == first
    for second in FORMATS:
        there = as_format(start, second)
        assert key_format(there) == second
        same(as_format(there, first), start)
    same(as_format(start, "mmdet"), weights)


@pytest.mark.parametrize("size", [(128, 128), (160, 128)])
@torch.no_grad()
def test_timms_weights_give_timms_outputs(small: Small, size: tuple[int, int]) -> None:
    # timm does not shift where a map is one window; stage 4 has a plain block alone.
    theirs = timm_model(img_size=size, num_classes=5)
    weights = randomised(theirs)
    assert key_format(weights) == "timm"
    model = small()
    report = model.load_state_dict(as_mmdet(weights), strict=False)
    assert all("relative_position_index" in key or key.startswith("norm") for key in report.missing_keys)
    assert set(report.unexpected_keys) == {"norm.weight", "norm.bias", "head.fc.weight", "head.fc.bias"}
    model.norm3.load_state_dict(theirs.norm.state_dict())
    for i in range(3):  # timm has no norms there: undo ours
        setattr(model, f"norm{i}", torch.nn.Identity())
    image = torch.randn(2, 3, *size)
    maps, expected = model(image), theirs.forward_intermediates(image, norm=True)
    for ours, found in zip(maps, expected[1], strict=True):
        torch.testing.assert_close(ours, found, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(maps[-1], expected[0].permute(0, 3, 1, 2), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_timm_model_takes_what_is_written_for_it(small: Small) -> None:
    model, theirs = small(), timm_model(img_size=128, num_classes=0)
    written = as_format(model.state_dict(), "timm")
    report = theirs.load_state_dict(written, strict=False)
    assert set(report.missing_keys) == {"norm.weight", "norm.bias"}
    assert set(report.unexpected_keys) == {f"norm{i}.{name}" for i in range(4) for name in ("weight", "bias")}
    theirs.norm.load_state_dict(model.norm3.state_dict())
    image = torch.randn(1, 3, 128, 128)
    torch.testing.assert_close(
        model(image)[-1], theirs.forward_features(image).permute(0, 3, 1, 2), rtol=1e-4, atol=1e-4
    )


def test_timm_itself_reads_the_originals_keys_as_we_do(small: Small, original: Original) -> None:
    theirs = timm_model(img_size=128, num_classes=0)
    from timm.models.swin_transformer import checkpoint_filter_fn

    weights = original(small())
    filtered = checkpoint_filter_fn({"model": weights}, theirs)
    same({key: value for key, value in filtered.items() if not key.startswith("norm")}, timm_keys(weights))
    # Before 0.9 timm's own keys were the original's, with the downsampling at the end of a stage.
    same(as_mmdet(filtered), as_mmdet(weights))


def timm_keys(weights: Weights) -> Weights:
    return {key: value for key, value in as_format(weights, "timm").items() if not key.startswith("norm")}


def test_keys_of_timms_feature_extractors(small: Small) -> None:
    weights = as_format(small().state_dict(), "timm")
    flat = {key.replace("layers.", "layers_"): value for key, value in weights.items() if not key.startswith("norm")}
    assert key_format(flat) == "timm"
    same(as_mmdet(flat), {key: value for key, value in as_mmdet(weights).items() if not key.startswith("norm")})


@pytest.mark.parametrize(("sides", "listed"), [(64, (1, 256, 8)), ((64, 96), (1, 8, 16, 24))])
def test_absolute_positions_are_a_map_or_a_classifiers_list(small: Small, sides: Any, listed: tuple[int, ...]) -> None:
    model = small(use_abs_pos_embed=True, pretrain_img_size=sides)
    detector = model.state_dict()
    assert as_format(detector, "swin")["absolute_pos_embed"].shape == model.absolute_pos_embed.shape
    classifier = {**detector, "norm.weight": torch.ones(64)}
    written = as_format(classifier, "swin")
    assert written["absolute_pos_embed"].shape == listed
    assert torch.equal(as_mmdet(written)["absolute_pos_embed"], model.absolute_pos_embed)


def test_computed_buffers_are_ignored_and_made_anew(small: Small) -> None:
    model = small()
    weights = as_format(model.state_dict(), "swin")
    for key in [key for key in weights if key.endswith("relative_position_index")]:
        weights[key] = torch.zeros(2)
        weights[key.replace("relative_position_index", "attn_mask")] = torch.zeros(4, 16, 16)
    same(as_format(weights, "mmdet"), dict(model.state_dict()))
    assert not [key for key in as_format(weights, "timm") if key.endswith(("index", "mask"))]


@pytest.mark.parametrize(
    "weights",
    [
        {},
        {"layer1.0.conv1.weight": torch.ones(1)},
        # Swin V2: no bias table, but a network that computes the bias
        {"layers.0.blocks.0.attn.qkv.weight": torch.ones(1), "layers.0.blocks.0.attn.logit_scale": torch.ones(1)},
    ],
    ids=["none", "ResNet", "Swin V2"],
)
def test_other_architectures_have_no_format(weights: Weights) -> None:
    assert key_format(weights) is None
    assert as_mmdet(weights) == weights
    with pytest.raises(UserError, match=r"no keys of a Swin among .*; known are those of mmdet, swin, timm"):
        as_format(weights, "mmdet")
