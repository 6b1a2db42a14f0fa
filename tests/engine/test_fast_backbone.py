"""The whole engine against the plain backbone in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from sparsevit import SparsitySpace, UserError
from sparsevit.engine import FastBackbone, accelerate, tuning
from sparsevit.engine.graphs import Graphs, Replay
from sparsevit.engine.recent import Recent
from sparsevit.model import SparseSwin, backbone

Make = Callable[..., SparseSwin]
Error = Callable[[Tensor, Tensor], float]
TOLERANCE = {torch.float32: 2e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def kernels(model: SparseSwin, dtype: torch.dtype) -> FastBackbone:
    """The backbone on kernels, also where they are interpreted."""
    return FastBackbone(model, dtype, kernels=True, graphs=False)


def expected(
    fast: FastBackbone, model: SparseSwin, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> tuple[Tensor, ...]:
    """The plain backbone's maps in float64 on the windows that `fast` kept last: near ties may rank otherwise."""
    (plan,) = fast._engine.plans._values.values()
    stages = [stage for stage, kept in zip(plan.stages, fast._kept(images), strict=True) if min(kept) < stage.windows]
    orders: Iterator[Tensor] = iter([ranked.long() for stage in stages for ranked in stage.ranked])
    plain = copy.deepcopy(model).double()
    plain.sparsity = fast.sparsity
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(backbone, "rank_windows", lambda magnitude, table: next(orders))
        maps = plain(images.double())
    assert next(orders, None) is None
    return maps


@pytest.mark.parametrize("size", [(56, 56), (70, 63), (61, 90)])
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "apart"])
@pytest.mark.parametrize("batch", [1, 2])
def test_equals_the_plain_backbone(
    make: Make,
    device: torch.device,
    dtype: torch.dtype,
    error: Error,
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
        for ours, theirs in zip(found, expected(fast, model, images, monkeypatch), strict=True):
            assert ours.shape == theirs.shape
            assert ours.dtype == dtype
            assert error(ours, theirs) < TOLERANCE[dtype]


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
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, Any],
) -> None:
    model = make(**arguments).to(device)
    images = torch.randn(2, 3, 60, 64, device=device)
    fast = kernels(model, dtype)
    for sparsity in ("dense", 0.4):
        fast.sparsity = sparsity
        found = fast(images)
        for ours, theirs in zip(found, expected(fast, model, images, monkeypatch), strict=True):
            assert error(ours, theirs) < TOLERANCE[dtype]


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

    def capture(self: Graphs, like: torch.Tensor, run: Any, buffers: Any) -> Replay:
        captured.append(buffers)
        return Replay(None, like, (), buffers)  # type: ignore[arg-type]

    monkeypatch.setattr(Graphs, "_capture", capture)
    graphs, images = Graphs(), torch.zeros(1)
    in_use = {"first", "second"}

    def get(key: int, buffers: str) -> Replay:
        return graphs.get(key, images, lambda images: (), buffers, lambda each: each in in_use)

    assert get(0, "first") is get(0, "first")
    get(1, "first")
    get(0, "second")
    assert len(graphs) == 3
    in_use.remove("first")
    in_use.add("first again")
    assert get(0, "first again").buffers == "first again"
    assert len(graphs) == 2
    assert captured == ["first", "first", "second", "first again"]


@pytest.mark.gpu
def test_more_sizes_than_buffers_are_kept_of(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsevit.engine import forward as module
    from sparsevit.engine.backbone import PLANS

    model = make().cuda()
    fast, launched = accelerate(model, dtype=torch.float16), accelerate(model, dtype=torch.float16, graphs=False)
    sizes = [(90 + 8 * number, 112) for number in range(PLANS + 2)]
    generator = torch.Generator("cuda").manual_seed(0)
    images = [torch.randn(2, 3, *size, generator=generator, device="cuda") for size in sizes]
    passes: list[int] = []
    forward = module.forward
    for turn in range(3):
        if turn:
            monkeypatch.setattr(module, "forward", lambda *given: passes.append(1) or forward(*given))
        for each in images:
            found = fast(each)
            other = [torch.full_like(one, float("nan")) for one in found]  # would be written over by a stale graph
            assert all(torch.equal(a, b) for a, b in zip(found, launched(each), strict=True))
            assert all(one.isnan().all() for one in other)
        assert len(fast._graphs) <= PLANS
    assert len(passes) <= 2 * len(sizes) * 3  # two to capture, one launched: nothing is compiled again


@pytest.mark.gpu
@pytest.mark.parametrize("dtype_", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("batch", "size"), [(4, (672, 672)), (1, (672, 672)), (5, (333, 415)), (3, (800, 1216))])
def test_swin_t_at_real_sizes(
    make: Make,
    error: Error,
    monkeypatch: pytest.MonkeyPatch,
    dtype_: torch.dtype,
    batch: int,
    size: tuple[int, int],
) -> None:
    settings = {"embed_dims": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24), "out_indices": (0, 1, 2, 3)}
    model = make(**settings).cuda()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("weight") and parameter.ndim == 2:
                parameter.mul_(0.3)  # as trained: rows of products of about 1
    images = torch.randn(batch, 3, *size, device="cuda")
    fast = accelerate(model, dtype=dtype_)
    for sparsity in ("dense", "0.3/0/0.1,0.2,0.2/0", 0.6):
        fast.sparsity = sparsity
        found = fast(images)
        for ours, theirs in zip(found, expected(fast, model, images, monkeypatch), strict=True):
            assert error(ours, theirs) < TOLERANCE[dtype_]


OUTPUTS = {  # where launchers take what they write
    "embed": (6,),
    "linear": (2,),
    "merge": (4,),
    "attention": (3,),
    "feed_forward": (0,),
    "norm": (4,),
    "magnitude": (1,),
    "score": (2,),
}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype_", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sparsity", ["dense", 0.6])
@pytest.mark.parametrize("batch", [4, 1])
def test_every_launch_of_a_real_pass(
    make: Make,
    as_double: Callable[[Any], Any],
    monkeypatch: pytest.MonkeyPatch,
    dtype_: torch.dtype,
    sparsity: Any,
    batch: int,
) -> None:
    """Each against its reference on its very input, with the block sizes it has in use; no row is far off."""
    from sparsevit.engine import forward

    checked: list[str] = []

    def watch(name: str, run: Any, reference: Any) -> None:
        def launch(*arguments: Any, **keywords: Any) -> None:
            expected = [as_double(each) for each in arguments]
            for place in OUTPUTS[name]:
                expected[place] = expected[place].clone()
            reference(*expected, **{key: as_double(value) for key, value in keywords.items()})
            run(*arguments, **keywords)
            for place in OUTPUTS[name]:
                found, right = arguments[place].double(), expected[place]
                rows = (found - right).flatten(1).norm(dim=1) if right.ndim > 1 else (found - right).abs()
                scale = right.norm() / len(right) ** 0.5
                assert not rows.isnan().any(), f"{name}: {len(checked)}"
                assert rows.max() < 10 * TOLERANCE[dtype_] * scale, f"{name} {place}: {len(checked)}: {rows.argmax()}"
            checked.append(name)

        monkeypatch.setattr(forward, name, launch)

    for name in OUTPUTS:
        run = getattr(forward, name)
        watch(name, run, getattr(__import__(run.__module__, fromlist=["reference"]), f"{name}_reference"))
    settings = {"embed_dims": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24), "out_indices": (0, 1, 2, 3)}
    fast = accelerate(make(**settings).cuda(), dtype=dtype_, graphs=False)
    fast.sparsity = sparsity
    fast(torch.randn(batch, 3, 672, 672, device="cuda"))
    assert len(checked) > 50


@pytest.mark.gpu
def test_graphs_are_bounded_and_compile_nothing_new(make: Make) -> None:
    import random
    import time

    from sparsevit.engine.graphs import LIMIT

    fast = accelerate(
        make(depths=(2, 2, 6, 2), num_heads=(1, 2, 4, 8), out_indices=(0, 1, 2, 3)).cuda(), dtype=torch.float16
    )
    images = torch.randn(2, 3, 224, 224, device="cuda")
    space, rng = SparsitySpace(), random.Random(0)
    fast(images)
    fast.sparsity = 0.5
    fast(images)
    used, times = [], []
    for _ in range(100):
        start = time.perf_counter()
        fast.sparsity = space.sample(rng)
        fast(images)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        used.append(torch.cuda.memory_allocated())
    assert max(times) < 1
    assert len(fast._graphs) <= LIMIT
    assert used[-1] == used[0]


@pytest.mark.gpu
def test_graphs_and_launches_agree(make: Make) -> None:
    model = make().cuda()
    with_graphs = accelerate(model, dtype=torch.float16)
    without = accelerate(model, dtype=torch.float16, graphs=False)
    plain = accelerate(model)
    for seed, sparsity in enumerate(("dense", "0.5/0.3", "dense", "0.2/0.8", "0.5/0.3")):
        images = torch.randn(2, 3, 90, 112, generator=torch.Generator().manual_seed(seed)).cuda()
        with_graphs.sparsity = without.sparsity = plain.sparsity = model.sparsity = sparsity
        assert all(torch.equal(a, b) for a, b in zip(with_graphs(images), without(images), strict=True))
        with torch.no_grad():
            for ours, theirs in zip(plain(images), model(images), strict=True):
                torch.testing.assert_close(ours, theirs)


@pytest.mark.gpu
def test_kernels_that_start_early_compute_what_others_do(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit, pass after pass: none reads what the kernel before it has yet to write."""
    from sparsevit.engine.kernels import attention, embed, feed_forward, linear, merge, rank

    settings = {"embed_dims": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24), "out_indices": (0, 1, 2, 3)}
    early = accelerate(make(**settings).cuda(), dtype=torch.bfloat16)
    late = accelerate(make(**settings).cuda(), dtype=torch.bfloat16, graphs=False)
    waits = {"DEPENDENT": False}
    modules = (attention, embed, feed_forward, linear, merge, rank)
    assert all(module.launch_options(torch.empty(1, device="cuda")) != waits for module in modules)
    for batch, side in ((1, 224), (4, 448), (2, 672)):
        for text in ("0.6", "0/0.5/0,0.3,0.9/0.9", "0.2", "dense"):
            early.sparsity = late.sparsity = text
            batches = [torch.randn(batch, 3, side, side, device="cuda") for _ in range(10)]
            found = [early(images) for images in batches]
            with monkeypatch.context() as patch:
                for module in modules:
                    patch.setattr(module, "launch_options", lambda x: waits)
                expected = [late(images) for images in batches]
            for one, other in zip(found, expected, strict=True):
                assert all(map(torch.equal, one, other)), (batch, side, text)


@pytest.mark.gpu
def test_memory_can_be_given_back(make: Make) -> None:
    model = make().cuda()
    fast = accelerate(model, dtype=torch.float16)
    images = torch.randn(4, 3, 224, 224, device="cuda")
    before = torch.cuda.memory_allocated()
    first = [each.cpu() for each in fast(images)]
    held = torch.cuda.memory_allocated()
    fast.release()
    torch.cuda.empty_cache()
    assert before <= torch.cuda.memory_allocated() < held
    assert all(torch.equal(each.cpu(), other) for each, other in zip(fast(images), first, strict=True))


def test_a_plain_engine_has_nothing_to_give_back(make: Make) -> None:
    fast = accelerate(make())
    images = torch.randn(1, 3, 90, 112)
    first = fast(images)
    fast.release()
    assert all(torch.equal(each, other) for each, other in zip(fast(images), first, strict=True))
