"""From a backbone to a fast one: what can be accelerated, and by what."""

from __future__ import annotations

import importlib.util
from typing import cast

import torch
from torch import nn

from sparsevit.engine.backbone import FastBackbone
from sparsevit.errors import UserError
from sparsevit.model.backbone import SparseSwin
from sparsevit.model.block import SwinBlock

KERNEL_DTYPES = (torch.bfloat16, torch.float16)
HEAD_SIZES = (16, 32, 64)
MAX_WINDOW = 8


def accelerate(backbone: nn.Module, *, dtype: torch.dtype | None = None, graphs: bool = True) -> FastBackbone:
    """A fast copy of `backbone` for inference, on the device where it lies.

    On a GPU with Triton, in bfloat16 or float16, Triton kernels compute it. Without a GPU, without Triton, or in
    float32, the plain backbone on compact tokens does, behind the same interface; in float32 on a CPU it is given parts
    that are faster there, see `engine/cpu.py`. Weights are copied now; later changes of the original do not reach the
    copy.

    Args:
        backbone: a `SparseSwin` in eval mode.
        dtype: to compute in; by default that of the weights.
        graphs: whether passes on a GPU are captured as CUDA graphs and replayed.

    Raises:
        UserError: if the backbone is in training mode, its weights lie on several devices, or the kernels do not
            support its windows or heads.
    """
    if not isinstance(backbone, SparseSwin):
        raise UserError(f"only a SparseSwin can be accelerated, not a {type(backbone).__name__}")
    if backbone.training:
        raise UserError("the backbone is in training mode: call eval() before accelerating it")
    devices = sorted({str(tensor.device) for tensor in (*backbone.parameters(), *backbone.buffers())})
    if len(devices) > 1:
        raise UserError(f"the backbone's weights lie on several devices ({', '.join(devices)}): move them to one")
    dtype = dtype or backbone.patch_embed.projection.weight.dtype
    if not dtype.is_floating_point:
        raise UserError(f"{dtype} is no floating type: take torch.bfloat16, torch.float16 or torch.float32")
    on_gpu = torch.device(devices[0]).type == "cuda"
    kernels = on_gpu and dtype in KERNEL_DTYPES and importlib.util.find_spec("triton") is not None
    if kernels:
        check_kernels(backbone)
    return FastBackbone(backbone, dtype, kernels=kernels, graphs=graphs and on_gpu)


def check_kernels(backbone: SparseSwin) -> None:
    """Refuse what the kernels cannot compute.

    Raises:
        UserError: for windows of more than 8 x 8 tokens, heads of other than 16, 32 or 64 channels, or large patches.
    """
    if not 2 <= backbone.window_size <= MAX_WINDOW:
        raise UserError(
            f"window_size {backbone.window_size}: the engine's kernels take windows of 2 to {MAX_WINDOW} tokens a "
            "side; take torch.float32, which needs none of them"
        )
    for number, (stage, channels) in enumerate(zip(backbone.stages, backbone.num_features, strict=True), 1):
        heads = cast(SwinBlock, cast(nn.ModuleList, stage.blocks)[0]).attn.w_msa.heads
        if channels // heads not in HEAD_SIZES:
            raise UserError(
                f"stage {number} has heads of {channels // heads} channels ({channels} in {heads} heads): the engine's "
                f"kernels take {', '.join(map(str, HEAD_SIZES))}; take torch.float32, which needs none of them"
            )
