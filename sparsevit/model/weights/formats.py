"""The three formats of keys that Swin weights come in, as pure functions between mappings of tensors.

`mmdet` is mmdet 2.x's and this package's own, `swin` that of the original repository, `timm` that of timm since 0.9
(before, timm had the original's). They differ in names, in the stage that a downsampling belongs to, and in the order
of the four tokens that a downsampling joins. A detector has such keys below `backbone.`; all other keys pass as they
are. Tensors are never computed with, so that there and back gives the same bits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Literal, get_args

from torch import Tensor

from sparsevit.errors import UserError
from sparsevit.model.block import relative_position_index
from sparsevit.model.weights.tables import BIAS_TABLE, POSITION, window_of_table

KeyFormat = Literal["mmdet", "swin", "timm"]
FORMATS: tuple[KeyFormat, ...] = get_args(KeyFormat)

BACKBONE = "backbone."
INDEX = "relative_position_index"
COMPUTED = (INDEX, "attn_mask")  # in some state dicts, but functions of the window and the image size
_JOINED = (0, 2, 1, 3)  # column by column instead of row by row: the four tokens of a 2 x 2 patch

# mmdet's name of a part of the model, and the other formats'.
_PARTS = (
    ("patch_embed.projection.", "patch_embed.proj."),
    (".attn.w_msa.", ".attn."),
    (".ffn.layers.0.0.", ".mlp.fc1."),
    (".ffn.layers.1.", ".mlp.fc2."),
)
_TABLE = re.compile(rf"(?:{re.escape(BACKBONE)})?(stages\.|layers[._])\d+\.blocks\.\d+\.attn\.(w_msa\.)?{BIAS_TABLE}$")
_STAGE = re.compile(r"(?:stages\.|layers[._])(\d+)\.(.*)")  # timm's feature extractors write layers_0
_DOWNSAMPLE = re.compile(r"layers[._](\d+)\.downsample\.")


def key_format(weights: Mapping[str, Tensor]) -> KeyFormat | None:
    """The format that a backbone's or detector's keys are in; None if they are no Swin's."""
    tables = [match for key in weights if (match := _TABLE.match(key))]
    if not tables:
        return None
    if tables[0][1] == "stages.":
        return "mmdet"
    inside = (key.removeprefix(BACKBONE) for key in weights)
    first = {match[1] for key in inside if (match := _DOWNSAMPLE.match(key))}
    return "timm" if first and "0" not in first else "swin"


def as_mmdet(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under mmdet's keys, without what can be computed. Keys that are no Swin's stay as they are."""
    source = key_format(weights)
    kept = {key: value for key, value in weights.items() if not key.endswith(COMPUTED)}
    if source in (None, "mmdet"):
        return {key: _as_map(key, value) for key, value in kept.items()}
    prefix = _prefix(kept)
    named: dict[str, Tensor] = {}
    for key, value in kept.items():
        if not key.startswith(prefix):
            named[key] = value
            continue
        name = key.removeprefix(prefix)
        if match := _STAGE.fullmatch(name):
            stage, rest = int(match[1]), match[2]
            if rest.startswith("downsample."):
                stage -= source == "timm"
                value = _row_by_row(value)
            name = f"stages.{stage}.{rest}"
        for ours, theirs in _PARTS:
            name = name.replace(theirs, ours)
        named[prefix + name] = _as_map(name, value)
    return named


def as_format(weights: Mapping[str, Tensor], target: KeyFormat) -> dict[str, Tensor]:
    """The weights, in whichever format, under the keys of `target`.

    The indices that state dicts of mmdet and of the original repository hold beside the weights are added.

    Raises:
        UserError: if the keys are no Swin's.
    """
    if key_format(weights) is None:
        raise UserError(
            f"no keys of a Swin among {len(weights)}, such as {', '.join(sorted(weights)[:3]) or 'none'}; "
            f"known are those of {', '.join(FORMATS)}"
        )
    ours = as_mmdet(weights)
    prefix = _prefix(ours)
    classifier = f"{prefix}norm.weight" in ours
    named: dict[str, Tensor] = {}
    for key, value in ours.items():
        name, inside = key.removeprefix(prefix), key.startswith(prefix)
        if inside and target != "mmdet":
            name, value = _theirs(name, value, target, classifier=classifier)
        named[prefix + name if inside else key] = value
        if name.endswith(BIAS_TABLE) and target != "timm" and (window := window_of_table(value)):
            named[prefix + name.removesuffix(BIAS_TABLE) + INDEX] = relative_position_index(window)
    return named


def _theirs(name: str, value: Tensor, target: KeyFormat, *, classifier: bool) -> tuple[str, Tensor]:
    """A key and tensor of mmdet's format in another one."""
    for ours, theirs in _PARTS:
        name = name.replace(ours, theirs)
    if match := _STAGE.fullmatch(name):
        stage, rest = int(match[1]), match[2]
        if rest.startswith("downsample."):
            stage += target == "timm"
            value = _column_by_column(value)
        name = f"layers.{stage}.{rest}"
    elif name == POSITION and classifier and value.ndim == 4 and value.shape[2] == value.shape[3]:
        value = value.flatten(2).transpose(1, 2)  # a list of positions there, and a map in the original's detectors
    return name, value


def _prefix(weights: Mapping[str, Tensor]) -> str:
    return BACKBONE if any(key.startswith(BACKBONE) for key in weights) else ""


def _as_map(name: str, value: Tensor) -> Tensor:
    """Absolute positions as a map `(1, C, H, W)` where they are a list of a square's `(1, H * W, C)`."""
    if not name.endswith(POSITION) or value.ndim != 3 or math.isqrt(value.shape[1]) ** 2 != value.shape[1]:
        return value
    side = math.isqrt(value.shape[1])
    return value.transpose(1, 2).reshape(len(value), -1, side, side)


def _row_by_row(value: Tensor) -> Tensor:
    """The last dimension from tokens (column by column), then channels, to channels, then tokens (row by row)."""
    if value.shape[-1] % 4:  # of another architecture, which who fits it to a model will say
        return value
    return value.reshape(*value.shape[:-1], 4, -1)[..., _JOINED, :].transpose(-1, -2).flatten(-2)


def _column_by_column(value: Tensor) -> Tensor:
    """What `_row_by_row` took apart."""
    if value.shape[-1] % 4:
        return value
    return value.reshape(*value.shape[:-1], -1, 4).transpose(-1, -2)[..., _JOINED, :].flatten(-2)
