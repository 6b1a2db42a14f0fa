"""Model configs of other projects, read as this one's: those of the SparseViT paper, and stock Swin configs.

What concerns training alone is in `training_forms`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmcv.utils import ConfigDict

from sparsevit.errors import UserError
from sparsevit.sparsity import Sparsity

_MODULE = "sparsevit.openmmlab"
_DEPTHS = (2, 2, 6, 2)  # of both backbones, unless the config says otherwise
# Names that Swin's own detection repository has for arguments of mmdet's SwinTransformer.
_SWIN_NAMES = {"embed_dim": "embed_dims", "ape": "use_abs_pos_embed", "use_checkpoint": "with_cp"}


def as_sparsevit(config: Any) -> list[str]:
    """Bring a config to the one form that the rest of the package reads; in place, and idempotent.

    - A backbone `SwinTransformer` becomes `SparseViT`, which computes the same at ratio 0: it pads where Swin does.
    - Top-level `pruning_ratios`, as in the paper's configs, become the backbone's.
    - `custom_imports` name this package, so that mmdet's own tools read a dumped config too.

    The paper's `random_sample` stays where it is: `adapting` reads it when a training starts.

    Returns:
        What a user should know, one line each.

    Raises:
        UserError: if there are two different `pruning_ratios`, or top-level ones that do not fit the backbone.
    """
    found = config.get("model")
    backbone = found.get("backbone") if isinstance(found, Mapping) else None
    if not isinstance(backbone, Mapping):
        return []  # building the model says what is wrong
    notes = []
    if backbone.get("type") == "SwinTransformer":
        config.model.backbone = ConfigDict(_swin(backbone))
        notes.append(
            "the config's backbone SwinTransformer is read as SparseViT with pad_before_norm=False: "
            "at ratio 0 the two are equal at every image size"
        )
    if config.model.backbone.get("type") == "SparseViT":
        _gather_ratios(config)
        _import_package(config)
    return notes


def own_sparsity(config: Any) -> Sparsity:
    """The sparsity that a config in this form names for its backbone."""
    backbone = config.model.backbone
    return Sparsity.of(backbone.get("pruning_ratios"), tuple(backbone.get("depths", _DEPTHS)))


def adapting(config: Any) -> bool:
    """Whether a training on this config draws a random sparsity each iteration, as the paper's `random_sample` asks."""
    value = config.get("random_sample")
    if value not in (None, True, False):
        raise UserError(f"random_sample is {value!r} in the config: write True or False")
    return bool(value)


def _swin(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """A SparseViT with the arguments of a Swin."""
    arguments = {_SWIN_NAMES.get(key, key): value for key, value in backbone.items()}
    return {"pad_before_norm": False, **arguments, "type": "SparseViT"}


def _gather_ratios(config: Any) -> None:
    """The ratios of the top level into the backbone."""
    if "pruning_ratios" not in config:
        return
    backbone = config.model.backbone
    above, inside = config._cfg_dict.pop("pruning_ratios"), backbone.get("pruning_ratios")
    if above is None:
        return
    depths = tuple(backbone.get("depths", _DEPTHS))
    try:
        asked = Sparsity.of(above, depths)
        agreed = inside is None or Sparsity.of(inside, depths) == asked
    except UserError as error:
        raise UserError(f"the config's pruning_ratios: {error}") from None
    if not agreed:
        raise UserError(
            f"the config has two pruning_ratios: {asked} at the top level, and {Sparsity.of(inside, depths)} in "
            "model.backbone; leave one of them out"
        )
    backbone.pruning_ratios = above


def _import_package(config: Any) -> None:
    imports = config.get("custom_imports") or {}
    names = imports.get("imports") or []
    names = [names] if isinstance(names, str) else list(names)
    if _MODULE not in names:
        config.custom_imports = {**imports, "imports": [_MODULE, *names]}
