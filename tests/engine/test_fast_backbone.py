"""The whole engine against the plain backbone in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from sparsevit import UserError
from sparsevit.engine import FastBackbone, accelerate, choices, plan, tuning
from sparsevit.engine.graphs import Graphs, Replay
from sparsevit.engine.recent import Recent
from sparsevit.model import SparseSwin, backbone

Make = Callable[..., SparseSwin]
Error = Callable[[Tensor, Tensor], float]
PlainMaps = Callable[[FastBackbone, SparseSwin, Tensor], tuple[Tensor, ...]]


def kernels(model: SparseSwin, dtype: torch.dtype) -> FastBackbone:
    """The backbone on kernels, also where they are interpreted."""
    return FastBackbone(model, dtype, kernels=True, graphs=False)


@pytest.mark.parametrize("size", [(56, 56), (70, 63), (61, 90)])
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "apart"])
@pytest.mark.parametrize("batch", [1, 2])
def test_equals_the_plain_backbone(
    make: Make,
    device: torch.device,
    dtype: torch.dtype,
    error: Error,
    plain_maps: PlainMaps,
    tolerance: dict[torch.dtype, float],
    monkeypatch: pytest.MonkeyPatch,
    size: tuple[int, int],
    fused: bool,
    batch: int,
) -> None:
    if not fused:
        monkeypatch.setattr(tuning, "FUSED_FEED_FORWARD", 0)
    model = make(seed=batch).to(device)
    images = torch.randn(batch, 3, *size, device=device)
    fast = kernels(model, dtype)
    for sparsity in ("dense", "0.5/0.3"):
        fast.sparsity = sparsity
        found = fast(images)
        for ours, theirs in zip(found, plain_maps(fast, model, images), strict=True):
            assert ours.shape == theirs.shape
            assert ours.dtype == dtype
            assert error(ours, theirs) < tolerance[dtype]


@pytest.mark.parametrize(("name", "allows"), [("chained", "chains"), ("shared", "shares")])
def test_a_feed_forward_network_of_compact_rows(
    make: Make,
    device: torch.device,
    dtype: torch.dtype,
    error: Error,
    plain_maps: PlainMaps,
    as_double: Callable[[Any], Any],
    tolerance: dict[torch.dtype, float],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    allows: str,
) -> None:
    """It takes the place of both products. Here its reference runs, as the kernel has one GPU and one shape."""
    from sparsevit.engine import forward

    launcher = f"{name}_feed_forward"
    module = import_module(f"sparsevit.engine.kernels.{launcher}")
    rows: list[int] = []

    def run(between: Tensor, first: Any, second: Any, *arguments: Any, **keywords: Any) -> None:
        rows.append(len(between))
        reference = getattr(module, f"{launcher}_reference")
        reference(*map(as_double, (between, first, second)), *arguments, **keywords)

    for chooses in (choices, plan):
        if hasattr(chooses, allows):
            monkeypatch.setattr(chooses, allows, lambda x, first: True)
    monkeypatch.setattr(tuning, "FUSED_FEED_FORWARD", 0)
    monkeypatch.setattr(tuning, f"{allows}_feed_forward", lambda rows: True)
    monkeypatch.setattr(forward, launcher, run)
    model = make().to(device)
    images = torch.randn(2, 3, 70, 63, device=device)
    fast = kernels(model, dtype)
    fast.sparsity = "0.3/0"
    found = fast(images)
    assert rows[-4:] == [2 * 6 * 49] * 2 + [2 * 4 * 49] * 2  # on a GPU passes that compile come first
    for ours, theirs in zip(found, plain_maps(fast, model, images), strict=True):
        assert error(ours, theirs) < tolerance[dtype]


@pytest.mark.parametrize(
    "arguments",
    [
        {"window_size": 4, "embed_dims": 48, "num_heads": (3, 3)},
        {"pad_before_norm": False},
        {"patch_norm": False, "qkv_bias": False, "qk_scale": 0.4},
        {"use_abs_pos_embed": True, "pretrain_img_size": 56},
        {"depths": (1, 3), "out_indices": (1,), "mlp_ratio": 2},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_every_kind_of_backbone(
    make: Make,
    device: torch.device,
    dtype: torch.dtype,
    error: Error,
    plain_maps: PlainMaps,
    tolerance: dict[torch.dtype, float],
    arguments: dict[str, Any],
) -> None:
    model = make(**arguments).to(device)
    images = torch.randn(2, 3, 60, 64, device=device)
    fast = kernels(model, dtype)
    for sparsity in ("dense", 0.4):
        fast.sparsity = sparsity
        found = fast(images)
        for ours, theirs in zip(found, plain_maps(fast, model, images), strict=True):
            assert error(ours, theirs) < tolerance[dtype]


def test_keeps_the_windows_that_the_plain_backbone_keeps(make: Make, device: torch.device) -> None:
    """In one precision, up to rounding, which random input does not come near."""
    model = make().to(device)
    images = torch.randn(2, 3, 112, 84, device=device)
    fast = kernels(model, torch.float16)
    fast.sparsity = 0.6
    fast(images)
    (plan,) = fast._engine.plans._values.values()
    stage = plan.stages[0]
    with torch.no_grad():
        x, size = model.patch_embed(images)
        tables = [backbone.window_table(*size, 7, shift, device) for shift in (0, 3)]
        ranks = [backbone.rank_windows(backbone.token_magnitude(x), table) for table in tables]
    for ours, theirs in zip(stage.ranked, ranks, strict=True):
        agreement = (ours[:, :4].sort().values == theirs[:, :4].sort().values).float().mean()
        assert agreement > 0.8
    assert torch.equal(stage.ranked.sort(-1).values[0, 0], torch.arange(stage.windows, device=device).int())


def test_pruned_windows_keep_their_values(make: Make, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsevit.engine import forward

    fast = kernels(make().to(device), torch.float16)
    fast.sparsity = "0.8/0.8"
    images = torch.randn(1, 3, 112, 112, device=device)
    fast(images)
    (plan,) = fast._engine.plans._values.values()
    after = plan.stages[0].x.clone()
    monkeypatch.setattr(forward, "_blocks", lambda *arguments, **keywords: None)
    fast(images)
    changed = (after != plan.stages[0].x).any(-1).sum()
    assert 3 * 49 <= int(changed) <= 2 * 3 * 49  # three of sixteen windows, plain and shifted


def test_weights_are_copies(make: Make, device: torch.device) -> None:
    model = make().to(device)
    for fast in (kernels(model, torch.float32), accelerate(model, graphs=False)):
        images = torch.randn(1, 3, 56, 56, device=device)
        before = fast(images)
        with torch.no_grad():
            saved = {name: value.clone() for name, value in model.state_dict().items()}
            for parameter in model.parameters():
                parameter.mul_(2)
        assert all(torch.equal(a, b) for a, b in zip(before, fast(images), strict=True))
        model.load_state_dict(saved)


def test_maps_are_the_callers_own(make: Make, device: torch.device) -> None:
    fast = kernels(make().to(device), torch.float16)
    first = fast(torch.randn(1, 3, 56, 56, device=device))
    kept = [each.clone() for each in first]
    fast(torch.randn(1, 3, 56, 56, device=device))
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))


def test_any_sparsity_and_copies(make: Make, device: torch.device) -> None:
    fast = kernels(make().to(device), torch.float16)
    assert fast.sparsity.is_dense
    fast.sparsity = "0.3/0.5"
    images = torch.randn(1, 3, 56, 56, device=device)
    fast(images)
    twin = copy.deepcopy(fast)
    assert twin.sparsity == fast.sparsity
    assert not len(twin._engine.plans)
    twin.sparsity = "dense"
    assert not fast.sparsity.is_dense
    with pytest.raises(UserError, match="does not fit"):
        fast.sparsity = "0.3/0.5/0.5"


@pytest.mark.parametrize("dtype_", [torch.float64, torch.bfloat16])  # float32: test_cpu.py
def test_without_a_gpu_the_plain_backbone_runs(make: Make, dtype_: torch.dtype) -> None:
    model = make()
    fast = accelerate(model, dtype=dtype_)
    assert not fast.kernels
    images = torch.randn(2, 3, 60, 57)
    for sparsity in ("dense", "0.3/0.6"):
        fast.sparsity = model.sparsity = sparsity
        plain = copy.deepcopy(model).to(dtype_)
        with torch.no_grad():
            assert all(torch.equal(a, b) for a, b in zip(fast(images), plain(images.to(dtype_)), strict=True))
    with pytest.raises(UserError, match="runs without CUDA graphs on cpu: call it instead"):
        fast.replay(images)


def test_refuses_what_it_cannot_do(make: Make, device: torch.device) -> None:
    model = make()
    with pytest.raises(UserError, match=r"in training mode: call eval\(\) before"):
        accelerate(copy.deepcopy(model).train())
    with pytest.raises(UserError, match="only a SparseSwin can be accelerated, not a Linear"):
        accelerate(torch.nn.Linear(2, 2))
    mixed = copy.deepcopy(model)
    mixed.stages[0].to("meta")
    with pytest.raises(UserError, match=r"several devices \(cpu, meta\): move them to one"):
        accelerate(mixed)
    with pytest.raises(UserError, match="int8 is no floating type"):
        accelerate(model, dtype=torch.int8)
    fast = kernels(model.to(device), torch.float16)
    with pytest.raises(UserError, match="is for inference: train the backbone it was made from"):
        fast.train()
    with pytest.raises(UserError, match="images are on meta, but the backbone is on"):
        fast(torch.randn(1, 3, 56, 56, device="meta"))
    with pytest.raises(
        UserError, match="27x56 pixels: there must be an image, and none smaller than one window, 28x28"
    ):
        fast(torch.randn(1, 3, 27, 56, device=device))
    with pytest.raises(UserError, match="a batch of 0 images"):
        fast(torch.randn(0, 3, 56, 56, device=device))
    for wrong in (torch.randn(1, 1, 56, 56), torch.randn(3, 56, 56), torch.zeros(1, 3, 56, 56, dtype=torch.int32)):
        with pytest.raises(UserError, match=r"images must be of shape \(batch, 3, height, width\)"):
            fast(wrong.to(device))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"window_size": 12}, "window_size 12: the engine's kernels take windows of 2 to 8 tokens a side"),
        ({"num_heads": (1, 16)}, r"stage 2 has heads of 4 channels \(64 in 16 heads\): the engine's kernels take 16"),
    ],
)
def test_refuses_what_kernels_cannot_compute(make: Make, arguments: dict[str, Any], said: str) -> None:
    from sparsevit.engine.accelerate import check_kernels

    with pytest.raises(UserError, match=said):
        check_kernels(make(**arguments))


def test_recent_keeps_what_was_used_last() -> None:
    made: list[int] = []
    recent: Recent[int, int] = Recent(3)
    for key in (1, 2, 3, 1, 4, 1, 2):
        recent.get(key, lambda key=key: made.append(key) or key)
    assert made == [1, 2, 3, 4, 2]
    assert len(recent) == 3
    assert not len(copy.deepcopy(recent))
    assert recent.holds(4)
    recent.keep(lambda value: value < 4)
    assert not recent.holds(4)
    assert recent.holds(1)
    assert recent.holds(2)
    recent.clear()
    assert not len(recent)


def test_graphs_go_with_the_buffers_they_work_in(monkeypatch: pytest.MonkeyPatch) -> None:
    captured: list[str] = []

    def capture(self: Graphs, like: torch.Tensor, run: Any, buffers: Any, weights: Any) -> Replay:
        captured.append(buffers)
        return Replay(None, like, (), buffers, weights)  # type: ignore[arg-type]

    monkeypatch.setattr(Graphs, "_capture", capture)
    graphs, images = Graphs(), torch.zeros(1)
    in_use = {"first", "second"}

    def get(key: int, buffers: str) -> Replay:
        return graphs.get(key, images, lambda images: (), buffers, lambda each: each in in_use, None)

    assert get(0, "first") is get(0, "first")
    get(1, "first")
    get(0, "second")
    assert len(graphs) == 3
    in_use.remove("first")
    in_use.add("first again")
    assert get(0, "first again").buffers == "first again"
    assert len(graphs) == 2
    assert captured == ["first", "first", "second", "first again"]


def test_a_plain_engine_has_nothing_to_give_back(make: Make) -> None:
    fast = accelerate(make())
    images = torch.randn(1, 3, 90, 112)
    first = fast(images)
    fast.release()
    assert all(torch.equal(each, other) for each, other in zip(fast(images), first, strict=True))
