"""What `sparsevit convert` does to weights between reading and writing them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sparsevit.errors import UserError
from sparsevit.model.weights.formats import BACKBONE, FORMATS, as_format, key_format
from sparsevit.model.weights.tables import resize_tables, window_of


def converted(weights: Mapping[str, Tensor], to: str | None, window: int | None) -> dict[str, Tensor]:
    """The weights in another format of keys (by default as they are), for another window (by default their own).

    Raises:
        UserError: if there is no such format, or the weights are no Swin's.
    """
    if to is None and window is None:
        return dict(weights)
    target = to or key_format(weights) or FORMATS[0]
    if target not in FORMATS:
        raise UserError(f"no key format {to!r}; there are: {', '.join(FORMATS)}")
    return as_format(weights if window is None else resize_tables(weights, window), target)


def backbone_of(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a detector's backbone, without its prefix.

    Raises:
        UserError: if there are none.
    """
    inside = {key.removeprefix(BACKBONE): value for key, value in weights.items() if key.startswith(BACKBONE)}
    if not inside:
        raise UserError(f"no key begins with {BACKBONE!r}, as those of a detector do: leave out --backbone")
    return inside


def described(weights: Mapping[str, Tensor]) -> str:
    """Number of tensors, key format and window, in a few words."""
    found, window = key_format(weights), window_of(weights)
    kind = f"{found} keys" if found else "no known keys"
    whose = ("detector, " if any(key.startswith(BACKBONE) for key in weights) else "backbone, ") if found else ""
    return f"{len(weights)} tensors, {whose}{kind}" + (f", window {window}" if window else "")
