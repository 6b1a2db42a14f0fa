"""Fitting weights to a model: every key must be there, none may be left over, and all shapes must agree."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from sparsevit.errors import UserError
from sparsevit.model.weights.formats import COMPUTED
from sparsevit.model.weights.tables import resized

_BLOCK = re.compile(r"(?<=\.blocks\.)\d+(?=\.)")


def fit_weights(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """What a model with the state dict `own` is to load: tables of positions are resized, computed buffers left out.

    Args:
        source: where the weights come from, for the error.

    Raises:
        UserError: if a key is missing, unknown, or of another shape. Its details list each of them; keys that differ
            in the number of their block alone stand in one line.
    """
    own = {key: value for key, value in own.items() if not key.endswith(COMPUTED)}
    fitted = {
        key: resized(key, value, own[key].shape) if key in own else value
        for key, value in weights.items()
        if not key.endswith(COMPUTED)
    }
    missing = [key for key in own if key not in fitted]
    unknown = [key for key in fitted if key not in own]
    shapes = {
        key: f"{_shape(value)}, but {_shape(own[key])} in the model"
        for key, value in fitted.items()
        if key in own and value.shape != own[key].shape
    }
    found: list[tuple[str, Mapping[str, str]]] = [
        ("missing", dict.fromkeys(missing, "")),
        ("unknown", dict.fromkeys(unknown, "")),
        ("of another shape", shapes),
    ]
    found = [(what, keys) for what, keys in found if keys]
    if not found:
        return fitted
    parts = [
        f"{len(keys)} {what} ({', '.join(sorted(keys)[:3])}{', …' if len(keys) > 3 else ''})" for what, keys in found
    ]
    details = [f"{what + ':':<18}{line}" for what, keys in found for line in _folded(keys)]
    raise UserError(f"{source} is a checkpoint of another model; keys: {'; '.join(parts)}", details=details)


def _shape(value: Tensor) -> str:
    return "×".join(map(str, value.shape)) or "a number"


def _folded(keys: Mapping[str, str]) -> list[str]:
    """One line for keys that differ in their block alone and of which the same is said: `stages.2.blocks.{6-17}.…`."""
    groups: dict[tuple[str, str], list[int]] = {}
    for key, said in keys.items():
        block = _BLOCK.search(key)
        numbers = groups.setdefault((_BLOCK.sub("*", key, count=1), said), [])
        if block:
            numbers.append(int(block[0]))
    lines = []
    for (pattern, said), numbers in groups.items():
        key = pattern.replace("*", _ranges(numbers), 1) if numbers else pattern
        lines.append(f"{key}  {said}".rstrip())
    return lines


def _ranges(numbers: Iterable[int]) -> str:
    """`6`, `{6-17}`, `{0,2-4}`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    words = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return words[0] if len(runs) == 1 and len(runs[0]) == 1 else "{" + ",".join(words) + "}"
