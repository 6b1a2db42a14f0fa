from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsevit.model.backbone import SparseSwin
from sparsevit.model.watching import watch_windows
from sparsevit.sparsity import Sparsity, SparsitySpace, windows_per_stage

SPACE = SparsitySpace((2, 2, 4, 2))


@pytest.fixture(scope="module")
def backbone() -> SparseSwin:
    torch.manual_seed(0)
    return SparseSwin(embed_dims=8, depths=SPACE.depths, num_heads=(1, 2, 2, 2)).eval()


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000))
def test_layers_keep_what_the_sparsity_says(backbone: SparseSwin, seed: int) -> None:
    import random

    sparsity = SPACE.sample(random.Random(seed))
    backbone.sparsity = sparsity
    image = torch.rand(1, 3, 120, 200, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode(), watch_windows(backbone) as layers:
        backbone(image)
    windows = windows_per_stage((120, 200))
    assert tuple(one.kept for one in layers) == sparsity.kept(windows)
    sizes = [(30, 50), (15, 25), (8, 13), (8, 13), (4, 7)]
    assert [tuple(one.computed.shape) for one in layers] == sizes
    for one, ratio in zip(layers, sparsity.flat, strict=True):
        assert set(one.computed.unique().tolist()) <= {0.0, 0.5, 1.0}
        if not ratio:
            assert one.computed.min() == 1


def test_pruned_tokens_are_those_that_do_not_change(backbone: SparseSwin) -> None:
    backbone.sparsity = Sparsity.parse("0.6/0/0,0/0")
    image = torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(1))
    before: list[torch.Tensor] = []
    after: list[torch.Tensor] = []
    stage = backbone.stages[0]
    handles = [
        stage.register_forward_pre_hook(lambda _, given: before.append(given[0].clone())),
        stage.register_forward_hook(lambda _, given, result: after.append(result.clone())),
    ]
    with torch.inference_mode(), watch_windows(backbone) as layers:
        backbone(image)
    for handle in handles:
        handle.remove()
    changed = (before[0] != after[0]).any(-1).view(28, 28)
    assert torch.equal(changed, layers[0].computed > 0)


def test_afterwards_nothing_is_left_in_the_backbone(backbone: SparseSwin) -> None:
    with watch_windows(backbone) as layers:
        pass
    with torch.inference_mode():
        backbone(torch.rand(1, 3, 64, 64))
    assert layers == []
