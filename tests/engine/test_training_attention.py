"""The training kernels compute attention and its gradients as PyTorch does."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from sparsevit.engine.training_attention import fast_attend, train_with_kernels, window_attention
from sparsevit.model.backbone import SparseSwin
from sparsevit.model.block import WindowAttention, attend


def case(windows: int, tokens: int, heads: int, masked: bool, seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(windows, tokens, 3, heads, 16, generator=generator)
    bias = torch.randn(heads, tokens, tokens, generator=generator)
    mask = torch.where(torch.rand(windows, tokens, tokens, generator=generator) < 0.3, -100.0, 0.0)
    pull = torch.randn(windows, tokens, heads * 16, generator=generator)
    return (qkv, bias, mask if masked else torch.empty(0), pull)


def results(
    function: object, qkv: torch.Tensor, bias: torch.Tensor, mask: torch.Tensor, pull: torch.Tensor
) -> list[torch.Tensor]:
    qkv, bias = qkv.clone().requires_grad_(), bias.clone().requires_grad_()
    rest = (0.0,) if function is not window_attention else ()
    out = function(qkv, bias, mask if mask.numel() else None, 0.25, *rest)  # type: ignore[operator]
    out.backward(pull)
    assert qkv.grad is not None
    assert bias.grad is not None
    return [out.detach(), qkv.grad, bias.grad]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter stands in for a GPU")
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(("windows", "tokens"), [(1, 49), (18, 9), (3, 16)])
def test_kernels_equal_pytorch(windows: int, tokens: int, masked: bool) -> None:
    given = case(windows, tokens, 2, masked, 0)
    for ours, expected in zip(results(window_attention, *given), results(attend, *given), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(("windows", "tokens"), [(1, 49), (333, 49), (40, 36)])
def test_on_a_gpu(windows: int, tokens: int, masked: bool, dtype: torch.dtype) -> None:
    qkv, bias, mask, pull = case(windows, tokens, 3, masked, 1)
    narrow = qkv.to(dtype), bias, mask, pull.to(dtype)
    found = results(window_attention, *(each.cuda() for each in narrow))
    expected = results(attend, *(each.float() for each in narrow))
    for ours, exact in zip(found, expected, strict=True):
        assert torch.linalg.norm(ours.float().cpu() - exact) < 1e-2 * torch.linalg.norm(exact)


@pytest.mark.gpu
def test_a_backbone_trains_with_the_kernels() -> None:
    torch.manual_seed(0)
    # Dense, as rounding alone may swap windows that are nearly as active.
    backbone = SparseSwin(embed_dims=32, depths=(2, 2), num_heads=(1, 2), out_indices=(0, 1), drop_path_rate=0.0).cuda()
    images = torch.randn(2, 3, 112, 112, device="cuda")
    found = []
    for kernels in (False, True):
        if kernels:
            train_with_kernels(backbone)
        backbone.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            maps = backbone(images)
        generator = torch.Generator("cuda").manual_seed(1)
        pulls = [torch.randn(each.shape, device="cuda", generator=generator) for each in maps]
        torch.autograd.backward([each.float() for each in maps], pulls)
        found.append([parameter.grad.clone() for parameter in backbone.parameters()])  # type: ignore[union-attr]
    for exact, ours in zip(*found, strict=True):
        assert torch.linalg.norm(ours - exact) < 5e-2 * torch.linalg.norm(exact)


def test_where_the_kernels_do_not_serve_pytorch_does() -> None:
    backbone = SparseSwin(embed_dims=32, depths=(2,), num_heads=(2,), out_indices=(0,))
    train_with_kernels(backbone)
    attentions = [module for module in backbone.modules() if isinstance(module, WindowAttention)]
    assert all(module.attend is fast_attend for module in attentions)
    qkv, bias, mask, _ = case(2, 49, 2, True, 0)
    assert torch.equal(fast_attend(qkv, bias, mask, 0.25, 0.0), attend(qkv, bias, mask, 0.25, 0.0))
