"""A found sparsity as a config that is ready to finetune: it inherits the supernet's and says where it comes from."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparsevit.errors import UserError
from sparsevit.model.weights import BUILTIN, weights_path
from sparsevit.openmmlab.config import config_path, read_config
from sparsevit.openmmlab.paper_forms import as_sparsevit
from sparsevit.sparsity import Sparsity


def write_finetune_config(
    config: str, checkpoint: str, sparsity: Sparsity, path: Path, provenance: Sequence[str]
) -> Path:
    """Write the finetune config of `sparsity` to `path`, whole or not at all, and return it.

    Args:
        config, checkpoint: the supernet's; the weights are where finetuning starts.
        provenance: lines for the comment on top.

    Raises:
        UserError: if `path` cannot be written.
    """
    given = read_config(config)
    base = copy.deepcopy(given)
    as_sparsevit(base)
    hooks = [dict(hook) for hook in base.get("custom_hooks") or [] if hook["type"] != "SparsityAdaptation"]
    start = checkpoint if checkpoint.startswith(BUILTIN) else str(weights_path(checkpoint).resolve())
    lines = [
        "# Finetune config written by sparsevit, which trains it so:",
        "#   sparsevit finetune CONFIG",
        *(f"# {_printable(line)}" for line in provenance),
        f"_base_ = {_reference(config_path(config), path)!r}",
        "",
        "# One list per stage, one pruning ratio per layer (two blocks).",
        f"model = dict(backbone=dict({_backbone(given, base, sparsity)}))",
        *_undone(given, base, sparsity),
        f"load_from = {start!r}",
        f"custom_hooks = {hooks!r}",
    ]
    if base.get("evaluate_sparsities"):  # validation during finetuning, of this sparsity alone
        lines.append(
            "evaluate_sparsities = dict(sparsities=dict(_delete_=True, subnet=model['backbone']['pruning_ratios']))"
        )
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text("\n".join([*lines, ""]), encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def _backbone(given: Any, base: Any, sparsity: Sparsity) -> str:
    """Arguments of the backbone: the ratios, and all others where the base's backbone is called Swin."""
    settings: dict[str, Any] = {"pruning_ratios": sparsity.floats}
    if given.model.backbone.type != base.model.backbone.type:
        settings = {"_delete_": True, **base.model.backbone.to_dict(), **settings}
    return ", ".join(f"{key}={value!r}" for key, value in settings.items())


def _undone(given: Any, base: Any, sparsity: Sparsity) -> list[str]:
    """What the base says in the paper's forms and must not hold any more, and the import that it lacks."""
    lines = []
    if given.get("custom_imports") != base.get("custom_imports"):
        lines.append(f"custom_imports = {base.custom_imports.to_dict()!r}")
    if given.get("pruning_ratios") is not None:
        lines.append(f"pruning_ratios = {sparsity.floats!r}")
    if given.get("random_sample"):
        lines.append("random_sample = False")
    return lines


def _printable(line: str) -> str:
    """A text that stays inside a one-line comment, and that mmcv takes for no template."""
    return "".join(sign if sign.isprintable() else " " for sign in line).replace("{{", "{ {")


def _reference(base: Path, path: Path) -> str:
    """How `path` names its base: relative where both lie below the current folder, so that the tree can move."""
    base, here = base.resolve(), Path.cwd()
    if base.is_relative_to(here) and path.resolve().is_relative_to(here):
        return os.path.relpath(base, path.resolve().parent)
    return str(base)
