"""Whole passes as a GPU runs them: compiled kernels, early launches, graphs, at the sizes that they are meant for."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from sparsevit import SparsitySpace
from sparsevit.engine import FastBackbone, accelerate
from sparsevit.model import SparseSwin

pytestmark = pytest.mark.gpu

Make = Callable[..., SparseSwin]
Error = Callable[[Tensor, Tensor], float]
PlainMaps = Callable[[FastBackbone, SparseSwin, Tensor], tuple[Tensor, ...]]
SWIN_T: dict[str, Any] = {
    "embed_dims": 96,
    "depths": (2, 2, 6, 2),
    "num_heads": (3, 6, 12, 24),
    "out_indices": (0, 1, 2, 3),
}


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


@pytest.mark.parametrize("dtype_", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("batch", "size"), [(4, (672, 672)), (1, (672, 672)), (5, (333, 415)), (3, (800, 1216))])
def test_swin_t_at_real_sizes(
    make: Make,
    error: Error,
    plain_maps: PlainMaps,
    tolerance: dict[torch.dtype, float],
    dtype_: torch.dtype,
    batch: int,
    size: tuple[int, int],
) -> None:
    model = make(**SWIN_T).cuda()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("weight") and parameter.ndim == 2:
                parameter.mul_(0.3)  # as trained: rows of products of about 1
    images = torch.randn(batch, 3, *size, device="cuda")
    fast = accelerate(model, dtype=dtype_)
    for sparsity in ("dense", "0.3/0/0.1,0.2,0.2/0", 0.6):
        fast.sparsity = sparsity
        found = fast(images)
        for ours, theirs in zip(found, plain_maps(fast, model, images), strict=True):
            assert error(ours, theirs) < tolerance[dtype_]


OUTPUTS = {  # where launchers take what they write
    "embed": (6,),
    "linear": (2,),
    "merge": (4,),
    "attention": (3,),
    "feed_forward": (0,),
    "held_feed_forward": (0,),
    "chained_feed_forward": (3,),
    "shared_feed_forward": (3,),
    "norm": (4,),
    "magnitude": (1,),
    "score": (2,),
    "score_and_rank": (3,),
    "window_attention": (5,),
    "pair_attention": (5,),
}


@pytest.mark.parametrize("dtype_", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sparsity", ["dense", 0.6])
@pytest.mark.parametrize("batch", [4, 1])
def test_every_launch_of_a_real_pass(
    make: Make,
    as_double: Callable[[Any], Any],
    tolerance: dict[torch.dtype, float],
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
                assert rows.max() < 10 * tolerance[dtype_] * scale, f"{name} {place}: {len(checked)}: {rows.argmax()}"
            checked.append(name)

        monkeypatch.setattr(forward, name, launch)

    for name in OUTPUTS:
        run = getattr(forward, name)
        watch(name, run, getattr(__import__(run.__module__, fromlist=["reference"]), f"{name}_reference"))
    fast = accelerate(make(**SWIN_T).cuda(), dtype=dtype_, graphs=False)
    fast.sparsity = sparsity
    fast(torch.randn(batch, 3, 672, 672, device="cuda"))
    assert len(checked) > 50
    (plan,) = fast._engine.plans._values.values()
    fills = batch == 4  # waves, in the second and third stage at 60 %, for which all is compiled at first
    for name in ("chained_feed_forward", "shared_feed_forward"):
        assert (name in checked) == (fills and plan.exchange is not None)


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


def test_a_pass_in_which_nothing_runs_beside_is_captured_too(make: Make) -> None:
    """Where the last stage alone has an output, its norm is one of the chain."""
    model = make(out_indices=(1,)).cuda()
    with_graphs = accelerate(model, dtype=torch.float16)
    without = accelerate(model, dtype=torch.float16, graphs=False)
    images = torch.randn(2, 3, 90, 112, device="cuda")
    for sparsity in ("dense", "0.5/0.3"):
        with_graphs.sparsity = without.sparsity = sparsity
        (found,), (expected,) = with_graphs(images), without(images)
        assert torch.equal(found, expected)


def test_kernels_that_start_early_compute_what_others_do(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit, pass after pass: none reads what the kernel before it has yet to write."""
    from sparsevit.engine.kernels import (
        attention,
        chained_feed_forward,
        embed,
        feed_forward,
        held_feed_forward,
        linear,
        merge,
        norm,
        pair_attention,
        rank,
        rank_few,
        shared_feed_forward,
        window_attention,
    )

    early = accelerate(make(**SWIN_T).cuda(), dtype=torch.bfloat16)
    late = accelerate(make(**SWIN_T).cuda(), dtype=torch.bfloat16, graphs=False)
    waits = {"DEPENDENT": False}
    modules = (
        attention, chained_feed_forward, embed, feed_forward, held_feed_forward, linear, merge, norm, pair_attention,
        rank, rank_few, shared_feed_forward, window_attention,
    )  # fmt: skip
    assert all(module.launch_options(torch.empty(1, device="cuda")) != waits for module in modules)
    for batch, side in ((1, 224), (4, 448), (2, 672)):
        for text in ("0.6", "0/0.5/0,0.3,0.9/0.9", "0.15", "dense"):
            early.sparsity = late.sparsity = text
            batches = [torch.randn(batch, 3, side, side, device="cuda") for _ in range(10)]
            found = [early(images) for images in batches]
            with monkeypatch.context() as patch:
                for module in modules:
                    patch.setattr(module, "launch_options", lambda x: waits)
                expected = [late(images) for images in batches]
            for one, other in zip(found, expected, strict=True):
                assert all(map(torch.equal, one, other)), (batch, side, text)


def test_the_first_pass_compiles_all_that_any_sparsity_needs(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    import triton

    from sparsevit.engine.kernels import cuda_source

    cuda_source._loaded.cache_clear()
    fast = accelerate(make(**SWIN_T).cuda(), dtype=torch.bfloat16, graphs=False)
    images = torch.randn(3, 3, 480, 416, device="cuda")
    fast(images)
    compiled: list[Any] = []
    loaded = cuda_source._loaded.cache_info().misses
    monkeypatch.setattr(triton.knobs.runtime, "jit_cache_hook", lambda **given: compiled.append(given["repr"]))
    for percent in range(0, 100, 3):
        fast.sparsity = percent / 100
        fast(images)
    fast.sparsity = "0/0.3/0,0.2,0.9/0"
    fast(images)
    assert not compiled
    assert cuda_source._loaded.cache_info().misses == loaded


def test_a_replay_outlives_its_backbone(make: Make) -> None:
    fast = accelerate(make(**SWIN_T).cuda(), dtype=torch.bfloat16)
    images = torch.randn(1, 3, 224, 224, device="cuda")
    expected = [each.clone() for each in fast(images)]
    replay = fast.replay(images)
    del fast
    gc.collect()
    torch.cuda.empty_cache()
    # where the weights would have been
    others = [torch.full((1 << 20,), float("nan"), device="cuda") for _ in range(64)]
    replay()
    assert all(map(torch.equal, replay.maps, expected)), len(others)


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
