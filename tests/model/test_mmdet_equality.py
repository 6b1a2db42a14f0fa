"""At ratio 0 the backbone is mmdet 2.x's Swin: the same keys, the same function."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("mmdet")

import sparsevit.openmmlab  # noqa: F401, I001  makes mmdet importable
from mmdet.models.backbones.swin import SwinTransformer

from sparsevit.model import SparseSwin


def pair(**arguments: Any) -> tuple[SparseSwin, torch.nn.Module]:
    settings: dict[str, Any] = {"embed_dims": 24, "depths": (2, 2, 4, 2), "num_heads": (1, 2, 4, 8)} | arguments
    torch.manual_seed(0)
    theirs = SwinTransformer(**settings)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    ours = SparseSwin(**settings, pad_before_norm=False)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours.load_state_dict(theirs.state_dict())
    theirs.eval()  # returns None
    return ours.eval(), theirs


@pytest.mark.parametrize("size", [(224, 224), (112, 336)])
@torch.no_grad()
def test_where_nothing_is_padded_both_orders_of_padding_equal_mmdets(size: tuple[int, int]) -> None:
    # Stages that are smaller than a window or no multiple of one would be padded: look at those that are not.
    unpadded = [i for i in range(4) if all(side // (4 * 2**i) % 7 == 0 for side in size)]
    ours, theirs = pair()
    trained = SparseSwin(embed_dims=24, depths=(2, 2, 4, 2), num_heads=(1, 2, 4, 8)).eval()
    trained.load_state_dict(ours.state_dict())
    image = torch.randn(2, 3, *size)
    expected = theirs(image)
    assert unpadded
    for i in unpadded:
        for model in (ours, trained):
            torch.testing.assert_close(model(image)[i], expected[i], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(224, 224), (100, 131), (64, 250)])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"window_size": 5, "mlp_ratio": 2, "qkv_bias": False, "patch_norm": False},
        {"use_abs_pos_embed": True, "pretrain_img_size": 224, "qk_scale": 0.3},
        {"out_indices": (1, 3), "depths": (2, 3, 1, 2)},
    ],
)
@torch.no_grad()
def test_padding_after_the_norm_equals_mmdets(size: tuple[int, int], arguments: dict[str, Any]) -> None:
    ours, theirs = pair(**arguments)
    image = torch.randn(2, 3, *size)
    torch.testing.assert_close(ours(image), tuple(theirs(image)), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_padding_before_the_norm_differs_at_padded_sizes() -> None:
    ours, theirs = pair()
    trained = SparseSwin(embed_dims=24, depths=(2, 2, 4, 2), num_heads=(1, 2, 4, 8)).eval()
    trained.load_state_dict(ours.state_dict())
    image = torch.randn(1, 3, 100, 131)
    assert (trained(image)[0] - theirs(image)[0]).abs().max() > 1e-3
