"""Config files, models and weights: reading what a user names, and saying plainly what does not fit.

A config file is Python code and is executed when it is read.
"""

from __future__ import annotations

import json
import pickle
import sys
import traceback
import zipfile
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
        _let_go(error)
        raise UserError(f"cannot read the config {path}: {first_line(error)}") from error
    if options:
        try:
            config.merge_from_dict(dict(options))
        except Exception as error:
            given = ", ".join(f"{key}={value}" for key, value in options.items())
            raise UserError(f"cannot set {given} in the config {path}: {first_line(error)}") from error
    return config


def _let_go(error: Exception) -> None:
    """Drop what the frames of an error hold: mmcv leaves a temporary file open there whose folder is gone, and Python
    would complain about that on the terminal."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        traceback.clear_frames(error.__traceback__)
    finally:
        sys.unraisablehook = hook


def options_of(items: Sequence[str] | None) -> Mapping[str, Any]:
    """`key.sub=value` texts as a mapping; values are JSON where they can be read so, else text.

    Raises:
        UserError: if a text has no key or no value.
    """
    options: dict[str, Any] = {}
    for item in items or ():
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise UserError(f"cannot read --cfg-options {item!r}: write it as key.sub=value, as runner.max_epochs=3")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return options


def first_line(error: BaseException) -> str:
    """An error of a library in one line: its type, and the beginning of what it says, or of what it was raised for."""
    while not str(error).strip() and error.__context__ is not None:
        error = error.__context__
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"


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
    found: Any = config
    for key in ("model", "backbone", "type"):
        found = found.get(key) if isinstance(found, Mapping | Config) else None
    if found != "SparseViT":
        raise UserError(
            f"the config's backbone is {found!r}, but must be 'SparseViT': set model.backbone.type and "
            'custom_imports = dict(imports=["sparsevit.openmmlab"])'
        )
    try:
        model: nn.Module = build_detector(
            config.model, train_cfg=config.get("train_cfg"), test_cfg=config.get("test_cfg")
        )
    except UserError:
        raise
    except Exception as error:  # whatever mmdet's classes make of a wrong argument
        raise UserError(f"cannot build the model of the config: {first_line(error)}") from error
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
    _fill(model, read_weights(path), path)


def load_backbone_weights(backbone: nn.Module, checkpoint: str | Path) -> None:
    """Put pretrained weights into a backbone: those of a backbone, a classifier on top of it, or a detector around it.

    A classifier lacks the norms `norm0` … of a detector's feature maps and has a head; all else must fit.

    Raises:
        UserError: as `load_weights`.
    """
    path = weights_path(checkpoint)
    weights = read_weights(path)
    inside = {key.removeprefix("backbone."): value for key, value in weights.items() if key.startswith("backbone.")}
    weights = inside or {key: value for key, value in weights.items() if not key.startswith(("head.", "norm."))}
    own = {key: value for key, value in backbone.state_dict().items() if key.startswith("norm")}
    _fill(backbone, own | weights, path)


def _fill(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
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
    """A checkpoint's tensors by name: safetensors, or a PyTorch file of plain tensors. Nothing in it is executed.

    Raises:
        UserError: if it is neither.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return {_strip(key): value for key, value in load_file(path).items()}
        if not _is_pytorch(path):
            raise UserError(f"{path} is not a checkpoint: neither safetensors nor a file that torch.save wrote")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than weights and is not loaded, as that could run code: save its state_dict alone"
        ) from error
    except Exception as error:
        raise UserError(f"cannot read the checkpoint {path}: {first_line(error)}") from error
    weights = content.get("state_dict", content.get("model", content)) if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"{path} holds no state dict")
    return {_strip(key): value for key, value in weights.items()}


def _strip(key: str) -> str:
    """A key without the prefix of a model that was wrapped for parallel training."""
    return key.removeprefix("module.")


def _is_pytorch(path: Path) -> bool:
    """Whether a file begins as torch's do: an archive, or, before version 1.6, a pickle."""
    if zipfile.is_zipfile(path):
        return True
    with path.open("rb") as stream:
        return stream.read(2) == b"\x80\x02"
