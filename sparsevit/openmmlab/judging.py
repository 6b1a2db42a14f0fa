"""A detector ready to be judged under many sparsities: its backbone on the engine, on a GPU the rest under autocast."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparsevit.console import Step
from sparsevit.engine import FastBackbone, accelerate
from sparsevit.errors import UserError
from sparsevit.openmmlab.evaluation import DetectorEvaluation
from sparsevit.openmmlab.hooks import backbone_of
from sparsevit.openmmlab.parallel import casting
from sparsevit.sparsity import Sparsity

AUTO = "auto"
BATCH = {"cuda": 16}
"""Images judged at once, by kind of device; 1 on others."""
PRECISIONS = (AUTO, "float32", "bfloat16", "float16")


class Judge:
    """One detector, whose weights stay as they are, and the images it is judged on.

    Attributes:
        dtype: what is computed in, see `precision_on`.
        fast: whether the engine's own parts run the backbone. They do in half precision on a GPU with Triton, unless
            they do not support its windows or heads, and in float32 on a CPU.
    """

    def __init__(self, model: nn.Module, evaluation: DetectorEvaluation, dtype: torch.dtype) -> None:
        self._device = next(model.parameters()).device
        on_gpu = self._device.type == "cuda"
        # With channels last, convolutions there need no copies before and after.
        self.model = (model.to(memory_format=torch.channels_last) if on_gpu else model).eval()  # type: ignore[call-overload]
        self.evaluation = evaluation
        self.dtype = dtype
        self._backbone: Any = backbone_of(model)
        self._engine = _engine(self._backbone, dtype)
        self.fast = self._engine is not None

    def metrics(
        self, sparsity: Sparsity, *, images: int | None = None, step: Step | None = None, masks: bool = True
    ) -> dict[str, float]:
        """COCO metrics on the first `images` images; see `DetectorEvaluation.metrics`."""
        self._backbone.sparsity = sparsity
        if self._engine is not None:
            self._engine.engine.sparsity = sparsity
        with casting(self._device, self.dtype):
            return self.evaluation.metrics(self.model, images=images, step=step, backbone=self._engine, masks=masks)

    def smaller_batch(self) -> bool:
        """Halve the batch from now on, and free what is kept; `False` if it is one image already."""
        if not self.evaluation.smaller_batch():
            return False
        if self._engine is not None:
            self._engine.engine.release()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return True


def precision_on(device: torch.device, wanted: str, target: str = "float32") -> torch.dtype:
    """What a detector is judged in.

    Args:
        wanted: one of `PRECISIONS`; `auto` is `target` on a GPU if that is half a precision, and bfloat16 if not.

    A CPU always computes in float32.

    Raises:
        UserError: for another name.
    """
    if wanted not in PRECISIONS:
        raise UserError(f"precision {wanted!r} is unknown: write {', '.join(PRECISIONS)}")
    if device.type != "cuda":
        return torch.float32
    if wanted == AUTO:
        wanted = target if target != "float32" else "bfloat16"
    found: torch.dtype = getattr(torch, wanted)
    return found


class _Engine(nn.Module):
    """An accelerated backbone among layers under autocast, which it takes no part in: it has a precision of its own."""

    def __init__(self, engine: FastBackbone) -> None:
        super().__init__()
        self.engine = engine

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(images.device.type, enabled=False):
            maps: tuple[Tensor, ...] = self.engine(images)
        return maps


def _engine(backbone: nn.Module, dtype: torch.dtype) -> _Engine | None:
    try:
        made = accelerate(backbone, dtype=dtype)
    except UserError:  # windows or heads that its kernels do not take, or a backbone of another kind
        return None
    return _Engine(made) if made.own_parts else None
