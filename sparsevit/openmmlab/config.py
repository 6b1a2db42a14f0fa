"""Config files, models and weights: reading what a user names, and saying plainly what does not fit.

A config file is Python code and is executed when it is read.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmcv import Config
from mmdet.models import build_detector
from torch import Tensor, nn

from sparsevit.assets import asset
from sparsevit.errors import UserError
from sparsevit.model.backbone import SparseSwin

BUILTIN = "builtin:"
_PREFIXES = ("module.",)
_COMPUTED = "relative_position_index"  # in a state dict, but a function of the window size


def load_config(name: str | Path, options: Mapping[str, Any] | None = None) -> Any:
    """An mmdet config from a file, or from those that come with the package (`builtin:digits/supernet.py`).

    Args:
        options: values to set, by dotted key, as mmdet's `--cfg-options` does.

    Raises:
        UserError: if there is no such file, or it cannot be executed.
    """
    path = config_path(name)
    try:
        config = Config.fromfile(str(path))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"cannot read the config {path}: {type(error).__name__}: {error}") from error
    if options:
        config.merge_from_dict(dict(options))
    return config


def config_path(name: str | Path) -> Path:
    """The file behind a config's name."""
    text = str(name)
    if text.startswith(BUILTIN):
        return asset("configs", text.removeprefix(BUILTIN))
    path = Path(text)
    if not path.is_file():
        raise UserError(f"config not found: {text}")
    return path


def weights_path(name: str | Path) -> Path:
    """The file behind a checkpoint's name; `builtin:digits` is the supernet that comes with the package."""
    text = str(name)
    if text.startswith(BUILTIN):
        path = Path(__file__).parents[1] / "weights" / f"{text.removeprefix(BUILTIN)}.safetensors"
    else:
        path = Path(text)
    if not path.is_file():
        raise UserError(f"checkpoint not found: {text}")
    return path


def build_model(config: Any, checkpoint: str | Path | None = None) -> nn.Module:
    """The detector of a config, with the weights of a checkpoint, or freshly initialised without one.

    Raises:
        UserError: if the config's backbone is not SparseViT or a value in it is refused.
    """
    backbone = config.get("model", {}).get("backbone", {}).get("type")
    if backbone != "SparseViT":
        raise UserError(
            f"the config's backbone is {backbone!r}, but must be 'SparseViT': set model.backbone.type and "
            'custom_imports = dict(imports=["sparsevit.openmmlab"])'
        )
    model: nn.Module = build_detector(config.model, train_cfg=config.get("train_cfg"), test_cfg=config.get("test_cfg"))
    if checkpoint is None:
        model.init_weights()  # type: ignore[operator]
    else:
        load_weights(model, checkpoint)
    return model


def load_backbone(config: str | Path, checkpoint: str | Path | None = None) -> SparseSwin:
    """The backbone alone, in eval mode, for timing."""
    model = build_model(load_config(config), checkpoint)
    backbone = model.backbone
    assert isinstance(backbone, SparseSwin)
    return backbone.eval()


def load_weights(model: nn.Module, checkpoint: str | Path) -> None:
    """Put a checkpoint's weights into a detector; every key must fit.

    Raises:
        UserError: if the file is no checkpoint, or one of another model; the first keys that do not fit are named.
    """
    path = weights_path(checkpoint)
    weights = read_weights(path)
    own = {key: value for key, value in model.state_dict().items() if not key.endswith(_COMPUTED)}
    weights = {key: value for key, value in weights.items() if not key.endswith(_COMPUTED)}
    missing = sorted(own.keys() - weights.keys())
    extra = sorted(weights.keys() - own.keys())
    shapes = sorted(key for key in own.keys() & weights.keys() if own[key].shape != weights[key].shape)
    if missing or extra or shapes:
        parts = [
            f"{len(keys)} {what} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
            for what, keys in (("missing", missing), ("unknown", extra), ("of another shape", shapes))
            if keys
        ]
        raise UserError(f"{path} is a checkpoint of another model; keys: {'; '.join(parts)}")
    model.load_state_dict(weights, strict=False)


def read_weights(path: Path) -> dict[str, Tensor]:
    """A checkpoint's tensors by name: safetensors, or a PyTorch file that holds plain tensors. Nothing in it is executed.

    Raises:
        UserError: if it is neither.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} holds more than weights and is not loaded, because reading it could run code") from error
    except Exception as error:
        raise UserError(f"cannot read the checkpoint {path}: {type(error).__name__}: {str(error).splitlines()[0]}") from error
    weights = content.get("state_dict", content.get("model", content)) if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"{path} holds no state dict")
    return {_strip(key): value for key, value in weights.items()}


def _strip(key: str) -> str:
    for prefix in _PREFIXES:
        key = key.removeprefix(prefix)
    return key


def sha256(paths: Sequence[Path]) -> str:
    """Digest of files' contents, in order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()
