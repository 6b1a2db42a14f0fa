"""Config files and the models they describe: reading what a user names, and saying plainly what does not fit.

A config file is Python code and is executed when it is read.
"""

from __future__ import annotations

import ast
import contextlib
import json
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmcv import Config
from mmdet.models import build_detector
from torch import nn

from sparsevit.assets import asset
from sparsevit.console import console, messages_on_stderr
from sparsevit.errors import UserError, first_line
from sparsevit.model.backbone import SparseSwin
from sparsevit.model.weights import BUILTIN
from sparsevit.openmmlab.paper_forms import as_sparsevit
from sparsevit.openmmlab.weights import load_backbone_weights, load_weights


def load_config(name: str | Path, options: Mapping[str, Any] | None = None) -> Any:
    """An mmdet config from a file, or from those that come with the package (`builtin:digits/supernet.py`).

    The paper's forms and stock Swin configs are brought to this package's, and the user is told; see `paper_forms`.

    Args:
        options: values to set, by dotted key, as mmdet's `--cfg-options` does.

    Raises:
        UserError: if there is no such file, it cannot be executed, or it contradicts itself.
    """
    config = read_config(name, options)
    notes = as_sparsevit(config)
    with messages_on_stderr():  # the standard output is for results
        for note in notes:
            console.print(f"note: {note}", markup=False)
    return config


def read_config(name: str | Path, options: Mapping[str, Any] | None = None) -> Any:
    """An mmdet config as it stands; otherwise like `load_config`."""
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
    """`key.sub=value` texts as a mapping; values are JSON, or Python's (a tuple, None), or else text.

    Raises:
        UserError: if a text has no key or no value.
    """
    options: dict[str, Any] = {}
    for item in items or ():
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise UserError(f"cannot read --cfg-options {item!r}: write it as key.sub=value, as runner.max_epochs=3")
        options[key] = value
        for read in (json.loads, ast.literal_eval):
            with contextlib.suppress(ValueError, SyntaxError):
                options[key] = read(value)
                break
    return options


def config_path(name: str | Path) -> Path:
    """The file behind a config's name."""
    text = str(name)
    if text.startswith(BUILTIN):
        return asset("configs", text.removeprefix(BUILTIN))
    path = Path(text)
    if not path.is_file():
        raise UserError(f"config not found: {text}")
    return path


def build_model(config: Any, checkpoint: str | Path | None = None, *, backbone_alone: bool = False) -> nn.Module:
    """The detector of a config, with the weights of a checkpoint, or freshly initialised without one.

    Args:
        backbone_alone: the checkpoint may be of a backbone alone; all else is initialised then.

    Raises:
        UserError: if the config's backbone is not SparseViT or a value in it is refused.
    """
    model = _built(config)
    if checkpoint is None:
        model.init_weights()  # type: ignore[operator]
    else:
        load_weights(model, checkpoint, backbone_alone=backbone_alone)
    return model


def load_backbone(config: str | Path, checkpoint: str | Path | None = None) -> SparseSwin:
    """The backbone alone, in eval mode, for timing; the checkpoint may be of a detector or of a backbone."""
    return build_backbone(load_config(config), checkpoint)


def build_backbone(config: Any, checkpoint: str | Path | None = None) -> SparseSwin:
    """The same from a config that is loaded."""
    backbone = _built(config).backbone
    assert isinstance(backbone, SparseSwin)
    if checkpoint is not None:
        load_backbone_weights(backbone, checkpoint)
    return backbone.eval()


def _built(config: Any) -> nn.Module:
    """The detector of a config, with whatever values its parameters were made with."""
    found: Any = config
    for key in ("model", "backbone", "type"):
        found = found.get(key) if isinstance(found, Mapping | Config) else None
    if found != "SparseViT":
        raise UserError(
            f"the config's backbone is {found!r}, but must be 'SparseViT', or 'SwinTransformer', which is read as it: "
            "set model.backbone.type"
        )
    try:
        model: nn.Module = build_detector(
            config.model, train_cfg=config.get("train_cfg"), test_cfg=config.get("test_cfg")
        )
    except UserError:
        raise
    except Exception as error:  # whatever mmdet's classes make of a wrong argument
        raise UserError(f"cannot build the model of the config: {first_line(error)}") from error
    return model
