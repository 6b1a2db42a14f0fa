"""The backbone against a literal implementation of the published algorithm, in values, gradients and cost."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sparsevit import Sparsity, SparsitySpace, UserError
from sparsevit.model import SparseSwin, backbone
from sparsevit.model.block import DropPath
from sparsevit.model.windows import WindowTable, rank_windows
from sparsevit.sparsity import windows_per_stage

Make = Callable[..., SparseSwin]
UNPADDED, PADDED, ODD = (128, 128), (72, 100), (61, 97)  # in pixels, windows of 4 x 4 tokens, patches of 4
SMALL_SPACE = SparsitySpace(depths=(2, 2, 4, 2))


def picture(size: tuple[int, int], batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


def close(ours: Any, theirs: Any, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(tuple(ours), tuple(theirs), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("size", [UNPADDED, PADDED, ODD])
@pytest.mark.parametrize("batch", [1, 2, 3])
@torch.no_grad()
def test_equals_the_published_algorithm(make: Make, reference: ModuleType, size: tuple[int, int], batch: int) -> None:
    model, rng = make(), random.Random(batch)
    space = SparsitySpace(depths=model.depths)
    fixed = ["dense", 0.3, 0.8, "0/0.5/0,0.4/0.2", "0.8/0/0.1,0.8/0"]
    for value in [*fixed, *(space.sample(rng) for _ in range(4))]:
        model.sparsity = value
        image = picture(size, batch, seed=batch)
        close(model(image), reference.forward(model, image, 4))


@torch.no_grad()
def test_equals_the_published_algorithm_at_swin_ts_window(make: Make, reference: ModuleType) -> None:
    model = make(window_size=7, depths=(2, 2, 6, 2))
    image = picture((112, 140))
    for value in ("dense", "0.3/0/0.1,0.2,0.2/0", 0.6):
        model.sparsity = value
        close(model(image), reference.forward(model, image, 7))


def gradients(model: SparseSwin, outs: Any, image: Tensor) -> list[Tensor]:
    loss = sum((out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).mean() for out in outs)
    wanted = [image, *model.parameters()]
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found, strict=True)]


@pytest.mark.parametrize("size", [(64, 64), ODD])
@pytest.mark.parametrize("sparsity", ["dense", "0.3/0/0.2,0.6/0.5", 0.6])
def test_gradients_equal_the_published_algorithms(
    make: Make, reference: ModuleType, size: tuple[int, int], sparsity: str | float
) -> None:
    model = make(pruning_ratios=sparsity).double()
    image = picture(size).double().requires_grad_()
    close(
        gradients(model, model(image), image),
        gradients(model, reference.forward(model, image, 4), image),
        tolerance=1e-9,
    )


@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
def test_gradients_are_those_of_the_function(make: Make, size: tuple[int, int]) -> None:
    # Away from ties, a small step changes no ranking, so numerical derivatives exist.
    settings = {"embed_dims": 2, "depths": (2, 2), "num_heads": (1, 2), "window_size": 2, "out_indices": (0, 1)}
    model = make(**settings, pruning_ratios="0.5/0.3").double()
    image = picture(size, batch=1).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: model(x), image, eps=1e-6, atol=1e-5, fast_mode=True)


def test_checkpointing_changes_neither_outputs_nor_gradients(make: Make) -> None:
    plain, saving = make(pruning_ratios=0.4), make(pruning_ratios=0.4, with_cp=True)
    for model in (plain, saving):
        model.train()
    results = []
    for model in (plain, saving):
        image = picture(PADDED).requires_grad_()
        torch.manual_seed(3)  # stochastic depth draws inside what is computed twice
        outs = model(image)
        results.append((outs, gradients(model, outs, image)))
    close(results[0][0], results[1][0])
    close(results[0][1], results[1][1])


@torch.no_grad()
def test_every_image_ranks_its_own_windows(make: Make) -> None:
    model = make(pruning_ratios=0.6)
    image = picture(PADDED, batch=3)
    image[1, :, :, 50:] = 0
    image[2, :, :40] *= 5
    for i, together in enumerate(zip(*(out.unbind(0) for out in model(image)), strict=True)):
        close(together, (out[0] for out in model(image[i : i + 1])))


@torch.no_grad()
def test_pruned_windows_keep_their_values(make: Make) -> None:
    model = make(depths=(2, 2), num_heads=(1, 2), out_indices=(0, 1))
    stage = model.stages[0]
    x = torch.randn(2, 256, 8)
    before = x.clone()
    after = stage(x, (16, 16), Sparsity.parse("0.8").stages[0])
    changed = (after != before).any(-1).sum(1)
    assert (changed >= 3 * 16).all()
    assert (changed <= 2 * 3 * 16).all()  # three of sixteen windows, plain and shifted


@torch.no_grad()
def test_input_image_is_left_alone_and_forward_repeats(make: Make) -> None:
    model = make(pruning_ratios=0.5)
    image = picture(PADDED)
    kept = image.clone()
    first = model(image)
    close(first, model(image), tolerance=0)
    assert torch.equal(image, kept)


def test_inference_first_then_training(make: Make) -> None:
    model, size = make(pruning_ratios=0.5), (88, 72)  # a size no other test has: its tables are made here
    with torch.inference_mode():
        model(picture(size))
    sum(out.sum() for out in model.train()(picture(size))).backward()


@torch.no_grad()
def test_cost_follows_the_windows_kept(make: Make) -> None:
    model = make(window_size=7)
    image = picture((224, 224), batch=1)
    windows = windows_per_stage((224, 224))

    def flops(value: Any) -> int:
        model.sparsity = value
        # The counter knows no flop of the CPU's fused attention; its plain form computes the same.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(image)
        return int(counter.get_total_flops())

    def block_flops(value: Any) -> int:
        """Multiply-adds times two of linear layers and attention, from what each layer keeps."""
        kept = iter(Sparsity.of(value, model.depths).kept(windows))
        total = 0
        for channels, depth in zip(model.num_features, model.depths, strict=True):
            for _ in range(depth // 2):
                linear = 49 * channels * channels * (3 + 1 + 4 + 4)
                total += next(kept) * 2 * 2 * (linear + 2 * 49 * 49 * channels)
        return total

    dense = flops("dense")
    for value in (0.6, "0.3/0/0.1,0.8/0"):
        assert dense - flops(value) == block_flops("dense") - block_flops(value)
    assert flops(0.6) < 0.55 * dense


def test_a_stage_of_one_window_is_never_ranked(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    ranked: list[int] = []

    def rank(magnitude: Tensor, table: WindowTable) -> Tensor:
        ranked.append(table.windows)
        return rank_windows(magnitude, table)

    monkeypatch.setattr(backbone, "rank_windows", rank)
    image = picture((64, 64))  # 16, 4, 1 and 1 windows
    model.sparsity = 0.8
    sparse = model(image)
    assert ranked == [16, 16, 4, 4]
    model.sparsity = "0.8/0.8/0,0/0"
    close(sparse, model(image), tolerance=0)


@pytest.mark.parametrize(
    "value", ["dense", None, 0.3, [0.3, 0, 0.1, 0.2, 0], "0.3/0/0.1,0.2/0", [[0.3] * 2, [0] * 2, [0] * 4, [0] * 2]]
)
def test_sparsity_takes_every_form(make: Make, value: Any) -> None:
    expected = Sparsity.of(value, (2, 2, 4, 2))
    assert make(pruning_ratios=value).sparsity == expected
    model = make()
    model.sparsity = value
    assert model.sparsity == expected


def test_a_refused_sparsity_leaves_the_active_one(make: Make) -> None:
    model = make(pruning_ratios=0.3)
    with pytest.raises(UserError, match="does not fit a backbone with depths"):
        model.sparsity = [0.1, 0.2]
    assert model.sparsity == SMALL_SPACE.uniform(0.3)


@pytest.mark.parametrize("frozen", [-1, 0, 2, 4])
def test_frozen_stages_stay_frozen(make: Make, frozen: int) -> None:
    model = make(frozen_stages=frozen, drop_rate=0.1)
    for mode in (None, True, False):
        if mode is not None:
            assert model.train(mode) is model
        for i, stage in enumerate(model.stages):
            for part in (stage, getattr(model, f"norm{i}")):
                assert all(parameter.requires_grad == (i >= frozen) for parameter in part.parameters())
                assert part.training == (bool(mode) and i >= frozen)
        assert all(parameter.requires_grad == (frozen < 0) for parameter in model.patch_embed.parameters())
        assert model.drop_after_pos.training == (bool(mode) and frozen < 0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"num_heads": (1, 2)}, r"num_heads \(1, 2\) and depths \(2, 2, 4, 2\) differ"),
        ({"num_heads": (3, 2, 2, 4)}, "num_heads 3 does not divide the 8 channels"),
        ({"out_indices": (0, 4)}, "stages from 0 to 3"),
        ({"out_indices": (-1,)}, "stages from 0 to 3"),
        ({"frozen_stages": 5}, "there are 4 stages"),
        ({"pruning_ratios": [0.3, 0.2]}, "does not fit a backbone with depths"),
        ({"pruning_ratios": 1.5}, "outside 0 <= ratio < 1"),
    ],
)
def test_arguments_that_do_not_fit(make: Make, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        make(**arguments)


def test_stochastic_depth_grows_with_depth_and_drops_whole_images(make: Make) -> None:
    model = make(drop_path_rate=0.5, depths=(2, 2), num_heads=(1, 2), out_indices=(0, 1)).train()
    drops = [module for module in model.modules() if isinstance(module, DropPath)]
    assert [drop.rate for drop in drops] == pytest.approx([0, 1 / 6, 1 / 3, 1 / 2])
    torch.manual_seed(0)
    out = drops[-1](torch.ones(200, 5, 3))
    assert set(out.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(out, out[:, :1, :1].expand_as(out))
