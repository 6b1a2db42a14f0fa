"""The SparseViT backbone in plain PyTorch: windows, blocks, backbone. Knows no detection framework."""

from sparsevit.model.backbone import SparseSwin

__all__ = ["SparseSwin"]
