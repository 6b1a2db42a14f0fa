"""A supernet without training: accuracy and latency are known functions of the windows kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sparsevit.latency.results import Timing
from sparsevit.sparsity import Sparsity

DEPTHS = (2, 2, 4, 2)
WINDOWS = (256, 64, 16, 4)
COST_MS = (9.0, 5.0, 4.0, 4.0, 2.0)
BASE_MS = 6.0
WEIGHTS = (0.05, 0.15, 0.10, 0.07, 0.20)
IMAGES = 50


class FakeBackbone(nn.Module):
    depths = DEPTHS
    window_size = 7
    patch_size = 4

    def __init__(self) -> None:
        super().__init__()
        self.sparsity = Sparsity.of(None, DEPTHS)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [images]


class FakeEvaluator:
    """Calls are noted in `asked`; `before` is called ahead of each."""

    asked: list[tuple[Sparsity, int | None]] = []  # noqa: RUF012 - shared with the test, which resets it
    before: Callable[[], None] | None = None

    def __init__(self, config: str | None, checkpoint: str, flavour: str, device: str, dtype: str) -> None:
        self._flavour = flavour

    def backbone(self) -> nn.Module:
        return FakeBackbone()

    def accuracy(self, sparsity: Sparsity, *, images: int | None = None, step: Any = None) -> Mapping[str, float]:
        if FakeEvaluator.before is not None:
            FakeEvaluator.before()
        FakeEvaluator.asked.append((sparsity, images))
        for _ in range(images or IMAGES if step else 0):
            step()
        lost = sum(weight * (1 - kept) ** 1.5 for weight, kept in zip(WEIGHTS, kept_shares(sparsity), strict=True))
        noise = 0.0 if images is None else 0.001 * images % 0.003
        return {"bbox_mAP": 0.8 - lost + noise, "segm_mAP": 0.7 - lost, "bbox_mAP_50": 0.9 - lost}

    def identity(self) -> Mapping[str, str]:
        return {"flavour": self._flavour}

    def export(self, sparsity: Sparsity, path: Path, provenance: Sequence[str]) -> Path:
        path.write_text("".join(f"# {line}\n" for line in provenance) + f"ratios = {sparsity.floats}\n")
        return path


def evaluator(
    *, config: str | None = None, checkpoint: str = "builtin", flavour: str = "plain", device: str, dtype: str
) -> FakeEvaluator:
    return FakeEvaluator(config, checkpoint, flavour, device, dtype)


def kept_shares(sparsity: Sparsity) -> list[float]:
    """The share of its windows that each layer keeps."""
    counts = [count for count, stage in zip(WINDOWS, sparsity.stages, strict=True) for _ in stage]
    return [kept / count for kept, count in zip(sparsity.kept(WINDOWS), counts, strict=True)]


def true_ms(sparsity: Sparsity) -> float:
    return BASE_MS + sum(cost * kept for cost, kept in zip(COST_MS, kept_shares(sparsity), strict=True))


def measure(backbone: nn.Module, target: object, sparsities: Sequence[Sparsity], **_: Any) -> list[Timing]:
    assert isinstance(backbone, FakeBackbone)
    return [Timing(ms, ms * 0.995, ms * 1.005, 20) for ms in map(true_ms, sparsities)]
