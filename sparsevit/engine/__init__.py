"""The backbone made fast for inference: Triton kernels on kept windows, compact tokens, CUDA graphs."""

from sparsevit.engine.accelerate import accelerate
from sparsevit.engine.backbone import FastBackbone

__all__ = ["FastBackbone", "accelerate"]
