"""A small backbone, and its weights under the keys of the original repository, by a literal renaming."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsevit.model import SparseSwin

Weights = dict[str, Tensor]
SMALL: dict[str, Any] = {
    "embed_dims": 8,
    "depths": (2, 2, 3, 1),
    "num_heads": (1, 2, 2, 4),
    "window_size": 4,
    "pad_before_norm": False,
}


@pytest.fixture
def small() -> Callable[..., SparseSwin]:
    """Builds the small backbone; every weight of it matters."""

    def build(**arguments: Any) -> SparseSwin:
        torch.manual_seed(0)
        model = SparseSwin(**{**SMALL, **arguments})
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
        return model.eval()

    return build


@pytest.fixture
def original() -> Callable[[SparseSwin], Weights]:
    """A backbone's state dict as the original repository has it, key by key and token by token."""

    def rename(model: SparseSwin) -> Weights:
        weights: Weights = {}
        for key, value in model.state_dict().items():
            key = key.replace("stages.", "layers.").replace("patch_embed.projection", "patch_embed.proj")
            key = key.replace("attn.w_msa", "attn").replace("ffn.layers.0.0", "mlp.fc1")
            key = key.replace("ffn.layers.1", "mlp.fc2")
            if "downsample" in key:
                channels = value.shape[-1] // 4
                # There: top left, bottom left, top right, bottom right, each with all its channels.
                joined = [4 * c + token for token in (0, 2, 1, 3) for c in range(channels)]
                value = value[..., joined]
            weights[key] = value.clone()
        return weights

    return rename
