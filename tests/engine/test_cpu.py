"""The parts made for a CPU against the plain backbone's."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsevit.engine import accelerate, cpu
from sparsevit.model import SparseSwin

Make = Callable[..., SparseSwin]
SPARSITIES = ("dense", "0.3/0.6", "0/0.5", "0.9/0.9")

pytestmark = pytest.mark.skipif(
    not cpu.serves(torch.device("cpu"), torch.float32), reason="this PyTorch is built without oneDNN"
)


def pictures(size: tuple[int, int], batch: int = 2, colours: int = 3) -> Tensor:
    return torch.randn(batch, colours, *size, generator=torch.Generator().manual_seed(size[0] + batch))


def close(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        assert (a - b).norm() / b.norm() < 1e-5
        assert (a - b).abs().max() / b.abs().max() < 1e-4


@pytest.mark.parametrize("part", [1, 4000, cpu.PART])
@pytest.mark.parametrize("size", [(112, 84), (61, 90), (58, 117)])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("pad_before_norm", [True, False])
@torch.no_grad()
def test_equals_the_plain_backbone(
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    part: int,
    size: tuple[int, int],
    batch: int,
    pad_before_norm: bool,
) -> None:
    monkeypatch.setattr(cpu, "PART", part)
    model, images = make(pad_before_norm=pad_before_norm), pictures(size, batch)
    fast = accelerate(model)
    for sparsity in SPARSITIES:
        fast.sparsity = model.sparsity = sparsity
        close(fast(images), model(images))


@pytest.mark.parametrize(
    "arguments",
    [
        {"window_size": 4, "embed_dims": 48, "num_heads": (3, 3)},
        {"window_size": 12},
        {"patch_norm": False, "qkv_bias": False, "qk_scale": 0.4},
        {"use_abs_pos_embed": True, "pretrain_img_size": 56},
        {"depths": (1, 3), "out_indices": (1,), "mlp_ratio": 2},
        {"patch_size": 2, "in_channels": 5},
        {"num_heads": (32, 1)},
        {"frozen_stages": 1},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
@torch.no_grad()
def test_every_kind_of_backbone(make: Make, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any]) -> None:
    monkeypatch.setattr(cpu, "PART", 10_000)
    model = make(**arguments)
    images = pictures((93, 71), colours=arguments.get("in_channels", 3))
    fast = accelerate(model)
    for sparsity in ("dense", 0.5, 0.9):
        fast.sparsity = model.sparsity = sparsity
        close(fast(images), model(images))
        strange = images.to(memory_format=torch.channels_last).double()
        close(fast(strange), model(images))


@torch.no_grad()
def test_the_original_stays_as_it_is(make: Make) -> None:
    model, images = make(), pictures((61, 90))
    before, names = model(images), list(model.state_dict())
    fast = accelerate(model)
    assert all(torch.equal(a, b) for a, b in zip(model(images), before, strict=True))
    assert list(model.state_dict()) == names
    model.train()(images)  # has its own parts still
    for parameter in model.parameters():
        parameter.mul_(2)
    close(fast(images), before)


def test_copies_compute_the_same(make: Make) -> None:
    fast, images = accelerate(make()), pictures((61, 90))
    fast.sparsity = 0.5
    expected = fast(images)
    for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert all(torch.equal(a, b) for a, b in zip(twin(images), expected, strict=True))
        twin.sparsity = "dense"
        twin(images)
    assert all(torch.equal(a, b) for a, b in zip(fast(images), expected, strict=True))


def test_takes_no_part_in_autocast_or_inference_mode(make: Make) -> None:
    fast, images = accelerate(make()), pictures((61, 90))
    fast.sparsity = 0.5
    expected = fast(images)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = fast(images)
    with torch.inference_mode():
        inferred = fast(images)
    for found in (mixed, inferred):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_images_stay_and_maps_are_the_callers_own(make: Make) -> None:
    fast, images = accelerate(make()), pictures((112, 84))
    given = images.clone()
    first = fast(images)
    kept = [each.clone() for each in first]
    fast(images + 1)
    assert torch.equal(images, given)
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@torch.no_grad()
def test_other_dtypes_and_builds_keep_the_plain_parts(
    make: Make, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    model, images = make(), pictures((61, 90))
    expected = copy.deepcopy(model).to(dtype)(images.to(dtype))
    assert all(torch.equal(a, b) for a, b in zip(accelerate(model, dtype=dtype)(images), expected, strict=True))
    assert not cpu.serves(torch.device("cuda"), torch.float32)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert all(torch.equal(a, b) for a, b in zip(accelerate(model)(images), model(images), strict=True))
