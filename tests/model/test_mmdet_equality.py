"""At ratio 0 the backbone is mmdet 2.x's Swin: the same keys, the same function."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("mmdet")

import sparsevit.openmmlab  # noqa: F401, I001  makes mmdet importable
from mmdet.models.backbones.swin import SwinTransformer

from hypothesis import given, settings
from hypothesis import strategies as st

from sparsevit.model import SparseSwin

SHARED = (torch.nn.Linear, torch.nn.LayerNorm, torch.nn.Conv2d)  # modules that both have under one name


def pair(**arguments: Any) -> tuple[SparseSwin, torch.nn.Module]:
    settings: dict[str, Any] = {"embed_dims": 24, "depths": (2, 2, 4, 2), "num_heads": (1, 2, 4, 8)} | arguments
    torch.manual_seed(0)
    theirs = SwinTransformer(**settings)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    ours = SparseSwin(**{key: value for key, value in settings.items() if key != "strides"}, pad_before_norm=False)
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


@settings(max_examples=25)
@given(
    height=st.integers(1, 240),
    width=st.integers(1, 240),
    batch=st.integers(1, 2),
    window=st.sampled_from([4, 7, 12]),
    depths=st.sampled_from([(2, 2, 6, 2), (2, 2, 18, 2), (1, 2), (3, 1, 2)]),
)
@torch.no_grad()
def test_padding_after_the_norm_equals_mmdets_at_every_size(
    height: int, width: int, batch: int, window: int, depths: tuple[int, ...]
) -> None:
    stages = {"num_heads": (1, 2, 2, 4)[: len(depths)], "out_indices": tuple(range(len(depths)))}
    if len(depths) != 4:  # mmdet wants a stride a stage
        stages |= {"strides": (4, 2, 2, 2)[: len(depths)]}
    ours, theirs = pair(embed_dims=8, depths=depths, window_size=window, **stages)
    image = torch.randn(batch, 3, height, width)
    torch.testing.assert_close(ours(image), tuple(theirs(image)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("window", [7, 12])
@torch.no_grad()
def test_swin_t_equals_mmdets_at_a_size_that_needs_padding(window: int) -> None:
    ours, theirs = pair(embed_dims=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), window_size=window)
    image = torch.randn(1, 3, 211, 300)
    torch.testing.assert_close(ours(image), tuple(theirs(image)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("frozen", range(-1, 5))
@pytest.mark.parametrize("positions", [False, True])
def test_the_same_parameters_are_frozen(frozen: int, positions: bool) -> None:
    settings: dict[str, Any] = {"embed_dims": 8, "num_heads": (1, 1, 1, 1), "use_abs_pos_embed": positions}
    found = []
    for kind in (SparseSwin, SwinTransformer):
        model = kind(**settings, depths=(2, 2, 2, 2), frozen_stages=frozen, out_indices=(1, 2, 3))
        model.train()
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        modes = {name for name, module in model.named_modules() if isinstance(module, SHARED) and module.training}
        found.append((trained, modes))
    assert found[0] == found[1]
