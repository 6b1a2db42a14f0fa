"""A backbone made fast for inference: pruned windows cost nothing, and a whole pass is one CUDA graph."""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparsevit.engine.graphs import Graphs, Replay
from sparsevit.engine.recent import Recent
from sparsevit.errors import UserError
from sparsevit.model.backbone import SparseSwin
from sparsevit.sparsity import Sparsity, windows_per_stage

if TYPE_CHECKING:
    from sparsevit.engine.plan import Plan

PLANS = 4
"""Batches and image sizes whose buffers are kept."""


class FastBackbone(nn.Module):
    """The interface of `SparseSwin` in inference; made by `sparsevit.engine.accelerate`.

    Its weights are copies: training the original afterwards does not change it. It has no parameters, and stays on the
    device and in the dtype it was made for. Copies of it start without buffers and graphs.

    kernels: whether Triton kernels compute it; else the plain backbone does.
    own_parts: whether anything of the engine's computes it: these kernels, or the parts that are made for a CPU.
    """

    def __init__(self, backbone: SparseSwin, dtype: torch.dtype, *, kernels: bool, graphs: bool) -> None:
        super().__init__()
        self.depths = backbone.depths
        self.window_size = backbone.window_size
        self.patch_size = backbone.patch_size
        self.out_indices = backbone.out_indices
        self.num_features = backbone.num_features
        self.device = backbone.patch_embed.projection.weight.device
        self.dtype = dtype
        self.kernels = kernels
        self.colours = backbone.patch_embed.projection.in_channels
        self._sparsity = backbone.sparsity
        self._graphs = Graphs() if graphs else None
        self._engine = _Kernels(backbone, dtype) if kernels else _Plain(backbone, dtype)
        self.own_parts = self._engine.own_parts
        self.eval()

    @property
    def sparsity(self) -> Sparsity:
        """The active sparsity. Setting it takes any form that `Sparsity.of` accepts and costs nothing."""
        return self._sparsity

    @sparsity.setter
    def sparsity(self, value: Any) -> None:
        self._sparsity = Sparsity.of(value, self.depths)

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Feature maps `(B, C, H, W)` of the stages in `out_indices`, for images `(B, colours, h, w)`.

        The maps are the caller's own. They have the engine's dtype, and channels-last memory where kernels made them.

        Raises:
            UserError: if the images lie on another device, have other colours, or are smaller than a window.
        """
        self._check(images)
        if self._graphs is None or torch.cuda.is_current_stream_capturing():
            maps = self._run(images)
            return maps if not self.kernels else tuple(each.clone() for each in maps)
        with torch.cuda.device(self.device):
            replay = self.replay(images)
            replay.images.copy_(images)
            replay()
            return tuple(each.clone() for each in replay.maps)

    @torch.no_grad()
    def replay(self, like: Tensor) -> Replay:
        """The captured pass of the active sparsity for images like these, without any copy in or out.

        Raises:
            UserError: as `forward`, or if this backbone runs without graphs.
        """
        self._check(like)
        if self._graphs is None:
            raise UserError(f"this backbone runs without CUDA graphs on {self.device}: call it instead")
        with torch.cuda.device(self.device):
            engine, buffers = self._engine, self._engine.buffers(like)
            return self._graphs.get(self._key(like), like, self._run, buffers, engine.in_use, engine.weights)

    def release(self) -> None:
        """Give back the memory of buffers and graphs; the next pass makes its own anew."""
        if self._graphs is not None:
            self._graphs.clear()
        self._engine.release()

    def train(self, mode: bool = True) -> FastBackbone:
        """Refuses training.

        Raises:
            UserError: if `mode` is True.
        """
        if mode:
            raise UserError("an accelerated backbone is for inference: train the backbone it was made from")
        return super().train(False)

    def _run(self, images: Tensor) -> tuple[Tensor, ...]:
        return self._engine.run(images, self.sparsity, self._kept(images))

    def _kept(self, images: Tensor) -> tuple[tuple[int, ...], ...]:
        height, width = images.shape[-2:]
        windows = windows_per_stage(
            (height, width), stages=len(self.depths), window=self.window_size, patch=self.patch_size
        )
        kept = iter(self.sparsity.kept(windows))
        return tuple(tuple(next(kept) for _ in stage) for stage in self.sparsity.stages)

    def _key(self, images: Tensor) -> Hashable:
        return self._kept(images)

    def _check(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != self.colours or not images.is_floating_point():
            raise UserError(
                f"images must be of shape (batch, {self.colours}, height, width) and of a floating type, "
                f"got {tuple(images.shape)} of {images.dtype}"
            )
        if images.device != self.device:
            raise UserError(f"images are on {images.device}, but the backbone is on {self.device}: move them there")
        side = self.window_size * self.patch_size
        if images.shape[0] < 1 or min(images.shape[-2:]) < side:
            raise UserError(
                f"a batch of {images.shape[0]} images of {images.shape[2]}x{images.shape[3]} pixels: "
                f"there must be an image, and none smaller than one window, {side}x{side}"
            )


class _Plain:
    """The plain backbone on compact tokens, in float32 on a CPU with parts that are made for one."""

    def __init__(self, backbone: SparseSwin, dtype: torch.dtype) -> None:
        import copy

        from sparsevit.engine import cpu

        self.backbone = self.weights = copy.deepcopy(backbone).to(dtype).eval().requires_grad_(False)
        self.dtype = dtype
        self.own_parts = cpu.serves(backbone.patch_embed.projection.weight.device, dtype)
        if self.own_parts:
            cpu.put_in(self.backbone)

    def run(self, images: Tensor, sparsity: Sparsity, kept: tuple[tuple[int, ...], ...]) -> tuple[Tensor, ...]:
        self.backbone.sparsity = sparsity
        with torch.autocast("cpu", enabled=False) if self.own_parts else nullcontext():
            maps: tuple[Tensor, ...] = self.backbone(images.to(self.dtype))
        return maps

    def buffers(self, images: Tensor) -> None:
        return None  # it keeps nothing between passes

    def in_use(self, buffers: object) -> bool:
        return True

    def release(self) -> None:
        pass


class _Kernels:
    """Triton kernels over planned buffers."""

    own_parts = True

    def __init__(self, backbone: SparseSwin, dtype: torch.dtype) -> None:
        from sparsevit.engine.weights import prepare

        self.weights = prepare(backbone, dtype)
        self.dtype = dtype
        self.patch, self.window = backbone.patch_size, backbone.window_size
        self.plans: Recent[Hashable, Plan] = Recent(PLANS)
        self._compiled: set[Hashable] = set()

    def run(self, images: Tensor, sparsity: Sparsity, kept: tuple[tuple[int, ...], ...]) -> tuple[Tensor, ...]:
        from sparsevit.engine.forward import forward

        return forward(images.contiguous(), self.buffers(images), self.weights, kept)

    def buffers(self, images: Tensor) -> Plan:
        return self.plans.get((images.shape[0], images.shape[2:]), partial(self._plan, images))

    def in_use(self, buffers: object) -> bool:
        return self.plans.holds(buffers)

    def release(self) -> None:
        self.plans.clear()

    def _plan(self, images: Tensor) -> Plan:
        """Buffers for images like these. Kernels are compiled now, so that no sparsity waits for one later."""
        from sparsevit.engine.choices import to_compile
        from sparsevit.engine.forward import forward
        from sparsevit.engine.plan import Shape, make_plan

        images = images.contiguous()
        shape = Shape(images.shape[0], (images.shape[2], images.shape[3]), self.patch, self.window)
        plan = make_plan(shape, self.weights, self.dtype, images.device)
        key = images.shape[0], images.shape[2:]
        compiled = key in self._compiled  # for a plan that had to make room since
        if images.is_cuda and not compiled and not torch.cuda.is_current_stream_capturing():
            self._compiled.add(key)
            for kept in to_compile(plan, self.weights):
                forward(images, plan, self.weights, kept)
        return plan
