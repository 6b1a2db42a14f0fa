"""The search's default evaluator: a detector's config and checkpoint, judged by COCO metrics."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsevit.console import Step
from sparsevit.model.weights import weights_path
from sparsevit.openmmlab.config import build_model, load_config
from sparsevit.openmmlab.evaluation import DetectorEvaluation
from sparsevit.openmmlab.export import write_finetune_config
from sparsevit.openmmlab.hooks import backbone_of
from sparsevit.openmmlab.parallel import casting
from sparsevit.openmmlab.timed import ExampleImages, TimedDetector
from sparsevit.sparsity import Sparsity

_IRRELEVANT = ("init_cfg", "pretrained", "pruning_ratios", "train_cfg")


class DetectorEvaluator:
    """A supernet detector under any sparsity; implements `Evaluator`, `Identified`, `EndToEnd` and `Exporter`."""

    def __init__(self, config: str, checkpoint: str, device: torch.device, dtype: torch.dtype, batch: int) -> None:
        self._config_name, self._checkpoint_name = config, checkpoint
        self._config = load_config(config)
        self._model = build_model(self._config, checkpoint).to(device).eval()
        self._device, self._dtype = device, dtype
        split = self._config.data.get("test") or self._config.data.val
        self._evaluation = DetectorEvaluation.of_dataset(split, batch=batch)

    def backbone(self) -> nn.Module:
        """The supernet's SparseViT backbone."""
        return backbone_of(self._model)

    def detector(self) -> nn.Module:
        """The supernet end to end, on images of the test split."""
        return TimedDetector(self._model, ExampleImages(self._evaluation.dataset))

    def accuracy(
        self, sparsity: Sparsity, *, images: int | None = None, step: Step | None = None
    ) -> Mapping[str, float]:
        """COCO metrics on the first `images` images of the config's test split."""
        backbone_of(self._model).sparsity = sparsity
        with casting(self._device, self._dtype):
            return self._evaluation.metrics(self._model, images=images, step=step)

    def identity(self) -> Mapping[str, str]:
        """Hashes of the weights, of the annotations, and of how images are prepared and detections made of them."""
        weights = hashlib.sha256()
        for key, tensor in sorted(self._model.state_dict().items()):
            weights.update(key.encode())
            weights.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        dataset = self._evaluation.dataset
        split = self._config.data.get("test") or self._config.data.val
        settings = {
            "pipeline": split.get("pipeline"),
            "model": _architecture(self._config.model),
            "test_cfg": self._config.get("test_cfg"),
        }
        return {
            "supernet": weights.hexdigest()[:16],
            "dataset": hashlib.sha256(Path(dataset.ann_file).read_bytes()).hexdigest()[:16],
            "testing": hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16],
            "precision": str(self._dtype).removeprefix("torch."),
        }

    def export(self, sparsity: Sparsity, path: Path, provenance: Sequence[str]) -> Path:
        """A finetune config that inherits the supernet's."""
        return write_finetune_config(self._config_name, self._checkpoint_name, sparsity, path, provenance)


def _architecture(settings: Any) -> Any:
    """A model's settings without those that do not matter once it has weights and a sparsity."""
    if isinstance(settings, Mapping):
        return {key: _architecture(value) for key, value in settings.items() if key not in _IRRELEVANT}
    return [_architecture(value) for value in settings] if isinstance(settings, list | tuple) else settings


def detector_evaluator(
    *, config: str, checkpoint: str, batch: int = 0, device: str = "cpu", dtype: str = "float32"
) -> DetectorEvaluator:
    """Factory for `[supernet]` of a study file.

    Args:
        config: the detector's config file, or `builtin:…`; it is code and is executed.
        checkpoint: the supernet's weights, or `builtin:digits`.
        batch: images judged at once; 0 picks 1 on the CPU and 8 on a GPU.
        device: `cpu`, `cuda:0`; passed on from the study's target.
        dtype: precision of judging on a GPU, from the study's target; the CPU always judges in float32.

    Raises:
        UserError: if a file is missing, or config and checkpoint do not fit together.
    """
    place = torch.device(device)
    weights_path(checkpoint)
    precision = getattr(torch, dtype) if place.type == "cuda" else torch.float32
    return DetectorEvaluator(config, checkpoint, place, precision, batch or (8 if place.type == "cuda" else 1))
