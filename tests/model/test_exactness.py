"""Exact for every Swin: depths, windows, image sizes, batches, ratios, number types, and ways to train."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsevit import Sparsity
from sparsevit.model import SparseSwin, backbone
from sparsevit.model.block import SwinBlock
from sparsevit.model.windows import WindowTable, rank_windows
from sparsevit.sparsity import layers_per_stage, windows_per_stage

Make = Callable[..., SparseSwin]
ratios = st.decimals(0, Decimal("0.99"), places=2) | st.sampled_from([Decimal(0), Decimal("0.8"), Decimal("0.333333")])
# Depths and heads of Swin-T, S, B and L, as of other numbers of stages; heads are few, to stay small.
PATTERNS: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((2, 2, 6, 2), (1, 2, 4, 8)),
    ((2, 2, 18, 2), (1, 2, 4, 8)),
    ((2, 6), (1, 2)),
    ((1, 3, 2), (2, 2, 4)),
    ((4,), (2,)),
    ((1, 2, 1, 2, 1), (1, 2, 2, 4, 4)),
]


@st.composite
def sparsities(draw: st.DrawFn, depths: Sequence[int]) -> Sparsity:
    stages = [sorted(draw(ratios) for _ in range(count)) for count in layers_per_stage(depths)]
    return Sparsity(tuple(tuple(stage) for stage in stages))


def picture(size: tuple[int, int], batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


def close(ours: Any, theirs: Any, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(tuple(ours), tuple(theirs), rtol=tolerance, atol=tolerance)


def apart(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest distance between two maps, relative to their size."""
    pairs = zip(ours, theirs, strict=True)
    return max(((a.double() - b.double()).norm() / b.double().norm()).item() for a, b in pairs)


def stages_out(depths: Sequence[int]) -> dict[str, Any]:
    return {"depths": tuple(depths), "out_indices": tuple(range(len(depths)))}


@settings(max_examples=60)
@given(st.data())
@torch.no_grad()
def test_any_model_at_any_size_under_any_ratios(make: Make, reference: ModuleType, data: st.DataObject) -> None:
    depths = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    model = make(
        **stages_out(depths),
        num_heads=(1, 2, 2, 4)[: len(depths)],
        embed_dims=4,
        window_size=data.draw(st.integers(2, 7)),
        pad_before_norm=data.draw(st.booleans()),
        use_abs_pos_embed=data.draw(st.booleans()),
        pretrain_img_size=32,
        pruning_ratios=data.draw(sparsities(depths)),
    )
    size = (data.draw(st.integers(1, 90)), data.draw(st.integers(1, 90)))
    image = picture(size, batch=data.draw(st.integers(1, 3)))
    close(model(image), reference.forward(model, image, model.window_size))


@pytest.mark.parametrize("pad_before_norm", [True, False])
@pytest.mark.parametrize("window", [7, 12])
@pytest.mark.parametrize(("depths", "heads"), PATTERNS, ids=str)
@torch.no_grad()
def test_every_pattern_of_depths_at_both_windows(
    make: Make,
    reference: ModuleType,
    depths: tuple[int, ...],
    heads: tuple[int, ...],
    window: int,
    pad_before_norm: bool,
) -> None:
    model = make(**stages_out(depths), num_heads=heads, window_size=window, pad_before_norm=pad_before_norm)
    image = picture((150, 203))
    for value in (0, 0.4, 0.8):
        model.sparsity = value
        close(model(image), reference.forward(model, image, window))


@pytest.mark.parametrize("size", [(672, 672), (500, 667)])
@torch.no_grad()
def test_swin_t_at_full_size(reference: ModuleType, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = SparseSwin(pruning_ratios="0.6/0/0.2,0.4,0.5/0").eval()
    image = picture(size, batch=1)
    close(model(image), reference.forward(model, image, 7))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("swin_tiny_patch4_window7_224", {}),
        ("swin_small_patch4_window7_224", {"depths": (2, 2, 18, 2)}),
        ("swin_base_patch4_window7_224", {"depths": (2, 2, 18, 2), "embed_dims": 128, "num_heads": (4, 8, 16, 32)}),
        (
            "swin_base_patch4_window12_384",
            {"depths": (2, 2, 18, 2), "embed_dims": 128, "num_heads": (4, 8, 16, 32), "window_size": 12},
        ),
        ("swin_large_patch4_window7_224", {"depths": (2, 2, 18, 2), "embed_dims": 192, "num_heads": (6, 12, 24, 48)}),
        (
            "swin_large_patch4_window12_384",
            {"depths": (2, 2, 18, 2), "embed_dims": 192, "num_heads": (6, 12, 24, 48), "window_size": 12},
        ),
    ],
)
def test_swin_t_s_b_and_l_have_the_shapes_of_timms(name: str, arguments: dict[str, Any]) -> None:
    timm = pytest.importorskip("timm")
    from sparsevit.model.weights import as_format

    with torch.device("meta"):
        ours = as_format(SparseSwin(**arguments).state_dict(), "timm")
        theirs = timm.create_model(name, num_classes=0, always_partition=True).state_dict()
    shapes = {key: value.shape for key, value in ours.items() if not key.startswith("norm")}
    assert shapes == {key: value.shape for key, value in theirs.items() if not key.startswith("norm.")}


@settings(max_examples=30)
@given(st.data())
@torch.no_grad()
def test_kept_counts_are_exact(make: Make, data: st.DataObject) -> None:
    depths = (2, 3, 2)
    sparsity, window = data.draw(sparsities(depths)), data.draw(st.integers(2, 7))
    model = make(**stages_out(depths), num_heads=(1, 2, 2), embed_dims=4, window_size=window, pruning_ratios=sparsity)
    size = (data.draw(st.integers(20, 120)), data.draw(st.integers(20, 120)))
    found: list[int] = []
    original = SwinBlock.forward

    def spy(block: SwinBlock, x: Tensor, table: WindowTable, kept: Tensor | None) -> Tensor:
        found.append(table.windows if kept is None else kept.shape[1])
        return original(block, x, table, kept)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SwinBlock, "forward", spy)
        model(picture(size, batch=2))
    windows = windows_per_stage(size, stages=3, window=window)
    assert found == [
        max(1, math.floor(windows[stage] * (1 - Fraction(str(sparsity.stages[stage][block // 2])))))
        for stage, depth in enumerate(depths)
        for block in range(depth)
    ]


HALF = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)], ids=["bf16", "fp16"]
)


@pytest.fixture
def same_windows(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[float]]:
    """From now on all forwards keep the windows that the first one ranks.

    Rounding swaps windows of nearly the same activity, and a swapped window differs as a whole. Calling the fixture
    ends the first forward; the list gets how much each later ranking agrees with it, as a fraction.
    """
    rankings: list[Tensor] = []
    agreement: list[float] = []
    recording, number = True, 0

    def rank(magnitude: Tensor, table: WindowTable) -> Tensor:
        nonlocal number
        found = rank_windows(magnitude, table)
        if recording:
            rankings.append(found)
            return found
        kept = rankings[number % len(rankings)]
        number += 1
        agreement.append((found == kept).double().mean().item())
        return kept

    def replay() -> list[float]:
        nonlocal recording
        recording = False
        return agreement

    monkeypatch.setattr(backbone, "rank_windows", rank)
    return replay


@HALF
@pytest.mark.parametrize("size", [(128, 128), (61, 97)])
@pytest.mark.parametrize("sparsity", ["dense", "0.3/0.5/0.2,0.6/0.5"])
@pytest.mark.parametrize("pad_before_norm", [True, False])
@torch.no_grad()
def test_half_precision_is_near_float32(
    make: Make,
    same_windows: Callable[[], list[float]],
    dtype: torch.dtype,
    tolerance: float,
    size: tuple[int, int],
    sparsity: str,
    pad_before_norm: bool,
) -> None:
    model, image = make(pruning_ratios=sparsity, pad_before_norm=pad_before_norm), picture(size)
    expected = model(image)
    agreement = same_windows()
    with torch.autocast("cpu", dtype):
        mixed = model(image)
    pure = model.to(dtype)(image.to(dtype))
    for found in (mixed, pure):
        assert all(out.isfinite().all() for out in found)
        assert apart(found, expected) < tolerance
    assert all(out.dtype == dtype for out in pure)
    assert not agreement or sum(agreement) / len(agreement) > 0.6


@HALF
def test_gradients_of_half_precision_are_near_float32(
    make: Make, same_windows: Callable[[], list[float]], dtype: torch.dtype, tolerance: float
) -> None:
    # Stochastic depth would draw other numbers in another type.
    model, image = make(pruning_ratios="0.3/0.5/0.2,0.6/0.5", drop_path_rate=0).train(), picture((61, 97))
    exact = gradients(model, model(image))
    same_windows()
    with torch.autocast("cpu", dtype):
        outs = model(image)
    rounded = gradients(model, outs)
    assert all(gradient.isfinite().all() for gradient in rounded)
    assert apart([torch.cat([g.flatten() for g in rounded])], [torch.cat([g.flatten() for g in exact])]) < 2 * tolerance


def gradients(model: SparseSwin, outs: Sequence[Tensor]) -> list[Tensor]:
    loss = sum((out.float() * torch.linspace(-1, 1, out.numel()).view_as(out)).mean() for out in outs)
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(loss, wanted, allow_unused=True)  # type: ignore[arg-type]
    return [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found, strict=True)]


@pytest.mark.parametrize("frozen", [-1, 2])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_checkpointing_gives_the_same_gradients(make: Make, rate: float, half: bool, frozen: int) -> None:
    results = []
    for with_cp in (False, True):
        model = make(
            pruning_ratios=0.4,
            with_cp=with_cp,
            frozen_stages=frozen,
            drop_rate=rate,
            attn_drop_rate=rate,
            drop_path_rate=rate,
            use_abs_pos_embed=True,
            pretrain_img_size=64,
        ).train()
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            outs = model(picture((72, 100)))
        results.append((outs, gradients(model, outs)))
    close(results[0][0], results[1][0], tolerance=0)
    close(results[0][1], results[1][1], tolerance=1e-6)


@pytest.mark.parametrize("frozen", [0, 1, 3])
def test_freezing_changes_no_output_and_no_other_gradient(make: Make, frozen: int) -> None:
    free, part = (
        make(pruning_ratios=0.4, drop_path_rate=0),
        make(pruning_ratios=0.4, drop_path_rate=0, frozen_stages=frozen),
    )
    image = picture((72, 100))
    outs = [model.train()(image) for model in (free, part)]
    close(*outs, tolerance=1e-5)  # attention takes another kernel where it needs no gradient
    kept = [name for name, parameter in part.named_parameters() if parameter.requires_grad]
    assert 0 < len(kept) < len(list(part.parameters()))
    everything = dict(zip(dict(free.named_parameters()), gradients(free, outs[0]), strict=True))
    close([everything[name] for name in kept], gradients(part, outs[1]), tolerance=1e-5)


@pytest.mark.parametrize(
    "arguments",
    [
        {"window_size": 3},
        {"window_size": 3, "pad_before_norm": False},
        {"window_size": 2, "with_cp": True},
        {"window_size": 3, "use_abs_pos_embed": True, "pretrain_img_size": 12},
    ],
    ids=["padded", "padded after the norm", "checkpointing", "positions"],
)
def test_gradients_are_those_of_the_function(make: Make, arguments: dict[str, Any]) -> None:
    small = {"embed_dims": 2, "depths": (2, 2), "num_heads": (1, 2), "out_indices": (0, 1), "drop_path_rate": 0}
    model = make(**{**small, **arguments}, pruning_ratios="0.5/0.3").double().train()
    image = picture((20, 28), batch=2).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: model(x), image, eps=1e-6, atol=1e-5, fast_mode=True)
    # and in the parameters: those of one shifted block
    names = [f"stages.0.blocks.1.{name}" for name in ("norm1.weight", "attn.w_msa.relative_position_bias_table")]
    values = tuple(dict(model.named_parameters())[name] for name in names)

    def through(*given: Tensor) -> Any:
        return torch.func.functional_call(model, dict(zip(names, given, strict=True)), image.detach())

    assert torch.autograd.gradcheck(through, values, eps=1e-6, atol=1e-5, fast_mode=True)
