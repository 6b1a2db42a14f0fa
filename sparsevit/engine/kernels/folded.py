"""A norm folded into the linear layer after it: its scale into the weight, its shift into the bias.

What is left of it are each row's mean and deviation, which can be applied after the product. K channels in, N out.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, eq=False)
class Weights:
    """A linear layer and the norm before it, folded into it.

    weight: shape `(K, N)`, times the norm's scale.
    bias: shape `(N,)`, float32, with the norm's shift put through the layer.
    padding: what the layer makes of padding, shape `(N,)`, float32: `bias`, unless padding follows the norm.
    column_sums: of `weight`, shape `(N,)`, float32.
    eps: the norm's; None where there is no norm.
    """

    weight: Tensor
    bias: Tensor
    padding: Tensor
    column_sums: Tensor
    eps: float | None = None

    @property
    def pads_after_norm(self) -> bool:
        """Whether padding needs another bias."""
        return self.padding is not self.bias


@triton.jit
def moments(total, squares, K: tl.constexpr, EPS: tl.constexpr):
    """Mean of rows of K channels, and what a norm multiplies them by, from their sums and sums of squares."""
    mean = total / K
    return mean, tl.rsqrt(tl.maximum(squares / K - mean * mean, 0.0) + EPS)


@triton.jit
def normed(acc, total, squares, of_columns, K: tl.constexpr, EPS: tl.constexpr):
    """Columns of a product of normed rows, from `acc`, that of the rows as they are, and the sums of both."""
    mean, deviation = moments(total, squares, K, EPS)
    return deviation[:, None] * (acc - mean[:, None] * of_columns[None, :])


def normed_product(rows: Tensor, weights: Weights) -> Tensor:
    """Norm, where the weights have one, and linear layer of rows, in their precision."""
    if weights.eps is not None:
        rows = F.layer_norm(rows, rows.shape[1:], eps=weights.eps)
    return rows @ weights.weight.to(rows.dtype) + weights.bias.to(rows.dtype)
