"""Sees which windows each layer of a backbone keeps, while it runs on one image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from sparsevit.model.backbone import SparseSwin, Stage
from sparsevit.model.windows import WindowTable


@dataclass(frozen=True)
class WatchedLayer:
    """What a layer did: windows kept of all, and the share of its blocks that computed each token, shape `(H, W)`."""

    kept: int
    windows: int
    computed: Tensor


@contextmanager
def watch_windows(backbone: SparseSwin) -> Iterator[list[WatchedLayer]]:
    """Fills the list with what each layer does to the first image of the next forward pass, first layer first."""
    layers: list[WatchedLayer] = []
    with ExitStack() as hooks:
        for module in backbone.stages:
            stage = cast(Stage, module)
            seen: list[tuple[int, int, Tensor]] = []
            for block in stage.blocks:
                handle = block.register_forward_pre_hook(_note(seen))
                hooks.callback(handle.remove)
            hooks.callback(stage.register_forward_hook(_gather(seen, layers)).remove)
        yield layers


def _note(seen: list[tuple[int, int, Tensor]]) -> Any:
    def note(block: nn.Module, given: tuple[Tensor, WindowTable, Tensor | None]) -> None:
        _, table, kept = given
        windows = table.index if kept is None else table.index[kept[0]]
        computed = torch.zeros(table.tokens + 1, device=windows.device)
        computed[windows.reshape(-1)] = 1  # the last place is that of padding
        seen.append((len(windows), table.windows, computed[:-1]))

    return note


def _gather(seen: list[tuple[int, int, Tensor]], layers: list[WatchedLayer]) -> Any:
    def gather(stage: nn.Module, given: tuple[Any, ...], result: Tensor) -> None:
        height, width = given[1]
        for place in range(0, len(seen), 2):  # a layer is a plain and a shifted block
            pair = seen[place : place + 2]
            computed = torch.stack([tokens for _, _, tokens in pair]).mean(0).view(height, width)
            layers.append(WatchedLayer(pair[0][0], pair[0][1], computed.cpu()))
        seen.clear()

    return gather
