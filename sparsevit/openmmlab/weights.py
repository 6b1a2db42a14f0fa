"""Weights of a file put into a detector or its backbone, whichever keys they have; every key must fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sparsevit.console import console, messages_on_stderr
from sparsevit.errors import UserError
from sparsevit.model.weights import as_mmdet, fit_weights, key_format, read_weights, weights_path, window_of
from sparsevit.model.weights.formats import BACKBONE


def load_weights(model: nn.Module, checkpoint: str | Path, *, backbone_alone: bool = False) -> None:
    """Put a checkpoint's weights into a detector; every key must fit.

    Args:
        backbone_alone: also take the weights of a backbone or a classifier; all else is initialised then.

    Raises:
        UserError: if the file is no checkpoint, or one of another model; its details list all keys that do not fit.
    """
    path = weights_path(checkpoint)
    weights = as_mmdet(read_weights(path))
    backbone: Any = getattr(model, "backbone", None)
    if backbone is None or key_format(weights) is None or any(key.startswith(BACKBONE) for key in weights):
        _load(model, weights, path)
    elif backbone_alone:
        backbone.init_cfg = None  # the file stands in its place
        model.init_weights()  # type: ignore[operator]
        _load_backbone(backbone, weights, path)
        _note(f"{path}: weights of a backbone alone; the rest of the detector starts afresh")
    else:
        raise UserError(
            f"{path} holds the weights of a backbone alone, but a whole detector's are needed; "
            f"to train one from it: sparsevit adapt CONFIG {path}"
        )


def load_backbone_weights(backbone: nn.Module, checkpoint: str | Path) -> None:
    """Put pretrained weights into a backbone: those of a backbone, a classifier on top of it, or a detector around it.

    The norms `norm0` … of feature maps may be missing, as a classifier has none, or more than the backbone uses; a
    classifier's own norm and head are left out. All else must fit.

    Raises:
        UserError: as `load_weights`.
    """
    path = weights_path(checkpoint)
    _load_backbone(backbone, as_mmdet(read_weights(path)), path)


def _load_backbone(backbone: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    inside = {key.removeprefix(BACKBONE): value for key, value in weights.items() if key.startswith(BACKBONE)}
    own = {key: value for key, value in backbone.state_dict().items() if key.startswith("norm")}
    unused = ("head.", "norm.", *(f"norm{i}." for i in range(10) if f"norm{i}.weight" not in own))
    wanted = {key: value for key, value in (inside or weights).items() if not key.startswith(unused)}
    _load(backbone, own | wanted, path)


def _load(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    own = model.state_dict()
    fitted = fit_weights(weights, own, str(path))
    if (given := window_of(weights)) != (used := window_of(fitted)):
        _note(f"{path}: position bias tables of window {given} are interpolated to {used}")
    model.load_state_dict(fitted, strict=False)


def _note(text: str) -> None:
    with messages_on_stderr():  # the standard output is for results
        console.print(f"note: {text}", markup=False)
