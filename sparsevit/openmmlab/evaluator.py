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
from sparsevit.openmmlab.judging import AUTO, BATCH, Judge, precision_on
from sparsevit.openmmlab.scenes import scene_of
from sparsevit.openmmlab.timed import ExampleImages, TimedDetector
from sparsevit.search.scene import Scene
from sparsevit.sparsity import Sparsity

_IRRELEVANT = ("init_cfg", "pretrained", "pruning_ratios", "train_cfg")


class DetectorEvaluator:
    """A supernet detector; implements `Evaluator` and all optional protocols of a search."""

    def __init__(
        self,
        config: str,
        checkpoint: str,
        device: torch.device,
        dtype: torch.dtype,
        batch: int,
        metrics: Sequence[str],
    ) -> None:
        self._config_name, self._checkpoint_name = config, checkpoint
        self._config = load_config(config)
        self._model = build_model(self._config, checkpoint).to(device).eval()
        boxes_suffice = bool(metrics) and all(name.startswith("bbox_") for name in metrics)
        self._masks = not (boxes_suffice and getattr(self._model, "with_mask", False))
        split = self._config.data.get("test") or self._config.data.val
        self._evaluation = DetectorEvaluation.of_dataset(split, batch=batch, on_device=True)
        self._judge = Judge(self._model, self._evaluation, dtype)

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
        return self._judge.metrics(sparsity, images=images, step=step, masks=self._masks)

    def smaller_batch(self) -> bool:
        """Halve the number of images judged at once; `False` if it is one already."""
        return self._judge.smaller_batch()

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
        figures = {} if self._masks else {"figures": "boxes alone"}
        return {
            "supernet": weights.hexdigest()[:16],
            "dataset": hashlib.sha256(Path(dataset.ann_file).read_bytes()).hexdigest()[:16],
            "testing": hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16],
            "precision": str(self._judge.dtype).removeprefix("torch."),
            **figures,
        }

    def description(self) -> Mapping[str, str]:
        """The kind of detector, the channels of its first stage, and the images it is judged on."""
        dataset = self._evaluation.dataset
        return {
            "detector": str(self._config.model.type),
            "channels": str(self._config.model.backbone.get("embed_dims", 96)),
            "data": f"{Path(dataset.ann_file).name}, {len(dataset)} images of {len(dataset.CLASSES)} classes",
        }

    def scenes(self) -> int:
        """How many images the config's test split has."""
        return len(self._evaluation)

    def scene(self, sparsity: Sparsity, index: int) -> Scene:
        """What the subnet does with image `index` of the config's test split."""
        backbone_of(self._model).sparsity = sparsity
        image, meta = self._evaluation.image(index)
        return scene_of(self._model, image, meta, tuple(self._evaluation.dataset.CLASSES))

    def export(self, sparsity: Sparsity, path: Path, provenance: Sequence[str]) -> Path:
        """A finetune config that inherits the supernet's."""
        return write_finetune_config(self._config_name, self._checkpoint_name, sparsity, path, provenance)


def _architecture(settings: Any) -> Any:
    """A model's settings without those that do not matter once it has weights and a sparsity."""
    if isinstance(settings, Mapping):
        return {key: _architecture(value) for key, value in settings.items() if key not in _IRRELEVANT}
    return [_architecture(value) for value in settings] if isinstance(settings, list | tuple) else settings


def detector_evaluator(
    *,
    config: str,
    checkpoint: str,
    batch: int = 0,
    metrics: Sequence[str] = (),
    precision: str = AUTO,
    device: str = "cpu",
    dtype: str = "float32",
) -> DetectorEvaluator:
    """Factory for `[supernet]` of a study file.

    Args:
        config: the detector's config file, or `builtin:…`; it is code and is executed.
        checkpoint: the supernet's weights, or `builtin:digits`.
        batch: images judged at once; 0 picks 1 on the CPU and 16 on a GPU.
        metrics: those that are asked for, from the study; none for all. Where they are boxes' alone, such as
            `bbox_mAP`, no mask is computed, which is faster.
        precision: of judging on a GPU: float32, bfloat16, float16, or auto for the target's if that is half a
            precision, else bfloat16. The CPU always judges in float32.
        device: `cpu`, `cuda:0`; passed on from the study's target.
        dtype: the target's; see `precision`.

    Raises:
        UserError: if a file is missing, config and checkpoint do not fit together, or the precision is unknown.
    """
    place = torch.device(device)
    weights_path(checkpoint)
    chosen = precision_on(place, precision, dtype)
    return DetectorEvaluator(config, checkpoint, place, chosen, batch or BATCH.get(place.type, 1), metrics)
