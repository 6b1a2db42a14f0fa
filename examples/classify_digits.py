"""Searching a supernet that is no detector: a classifier of handwritten digits, each in a corner of an empty canvas.

    python examples/classify_digits.py                       # trains the supernet, under a minute on one CPU core
    sparsevit search examples/classify_digits.toml

All that a search asks of a supernet is `Classifier`: a backbone to time, and the accuracy of a sparsity. Most windows
hold nothing here, so much can be pruned. Needs scikit-learn for its scans of digits; knows nothing of mmdet.

B images, C channels, H W height and width.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from sparsevit.adaptation import SparsitySchedule
from sparsevit.console import Step, console, progress
from sparsevit.data.digits import scans
from sparsevit.model import SparseSwin
from sparsevit.sparsity import Sparsity, SparsitySpace

SIDE, DIGIT = 64, 32  # pixels of the canvas, and of the digit in one of its corners
WEIGHTS = Path("runs/classify_digits/supernet.safetensors")


class Network(nn.Module):
    """A SparseSwin of two stages, the largest of each feature, and a linear layer: `(B, 3, H, W)` to `(B, 10)`."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = SparseSwin(
            embed_dims=32,
            depths=(2, 4),
            num_heads=(2, 4),
            window_size=4,
            mlp_ratio=2,
            patch_norm=False,  # a patch of one colour has nothing but its brightness to tell
            out_indices=(1,),
            drop_path_rate=0,
        )
        self.head = nn.Linear(64, 10)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        (features_BCHW,) = self.backbone(images_BCHW)
        return self.head(features_BCHW.amax(dim=(2, 3)))


class Classifier:
    """What a search needs: `sparsevit.search.evaluator.Evaluator`, and nothing more."""

    def __init__(self, weights: str, device: str) -> None:
        self._network = Network().to(device).eval()
        self._network.load_state_dict(load_file(weights, device=device))
        self._images, self._labels = (
            one.to(device) for one in canvases("val", np.arange(len(scans("val")[0])), seed=0)
        )

    def backbone(self) -> nn.Module:
        """The part whose latency is searched for."""
        return self._network.backbone

    @torch.inference_mode()
    def accuracy(
        self, sparsity: Sparsity, *, images: int | None = None, step: Step | None = None
    ) -> Mapping[str, float]:
        """`top1` and `top3` (fractions) on the first `images` canvases of the validation split, or on all."""
        self._network.backbone.sparsity = sparsity
        shown, labels = self._images[:images], self._labels[:images]
        hits = []
        for some, right in zip(shown.split(50), labels.split(50), strict=True):
            best = self._network(some).topk(3).indices
            hits.append(best == right[:, None])
            if step is not None:
                step(len(some))
        hit = torch.cat(hits)
        return {"top1": hit[:, 0].float().mean().item(), "top3": hit.any(dim=1).float().mean().item()}


def evaluator(*, checkpoint: str, device: str, dtype: str) -> Classifier:
    """The factory that the study file names; it gets the keys of `[supernet]`, and device and dtype of `[target]`.

    Accuracies are judged in float32, whatever the dtype that latencies are measured in.
    """
    return Classifier(checkpoint, device)


def canvases(split: str, numbers: np.ndarray, seed: int) -> tuple[Tensor, Tensor]:
    """Images `(B, 3, H, W)`, about 0 to 1, and classes `(B,)`, of these scans, in corners by the seed."""
    rng = np.random.default_rng(seed)
    digits, labels = (torch.from_numpy(one[numbers]) for one in scans(split))
    large = digits.repeat_interleave(DIGIT // 8, dim=1).repeat_interleave(DIGIT // 8, dim=2)
    canvas = torch.from_numpy(rng.normal(0, 0.05, (len(numbers), 1, SIDE, SIDE)).astype(np.float32))
    for image, digit, (row, column) in zip(canvas, large, rng.integers(2, size=(len(numbers), 2)) * DIGIT, strict=True):
        image[0, row : row + DIGIT, column : column + DIGIT] += digit
    return canvas.repeat(1, 3, 1, 1), labels


def train(weights: Path, iterations: int = 300, batch: int = 48, seed: int = 0) -> float:
    """Train the supernet, each iteration under a random sparsity (SAA); returns its dense top-1 accuracy."""
    torch.manual_seed(seed)
    network = Network()
    schedule = SparsitySchedule(SparsitySpace(network.backbone.depths), seed)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=iterations, pct_start=0.1)
    drawn = np.random.default_rng(seed)
    with progress("training", iterations) as step:
        for iteration in range(iterations):
            images, labels = canvases("train", drawn.integers(len(scans("train")[0]), size=batch), seed + 1 + iteration)
            # Dense half of the time: it learns faster, and what is pruned is learnt from what is not.
            network.backbone.sparsity = schedule(iteration) if iteration % 2 else None
            loss = F.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
            step(note=f"loss {loss.item():.3f}")
    weights.parent.mkdir(parents=True, exist_ok=True)
    part = weights.with_suffix(".part")
    save_file(network.state_dict(), part)
    part.replace(weights)
    return Classifier(str(weights), "cpu").accuracy(Sparsity.of(None, network.backbone.depths))["top1"]


if __name__ == "__main__":
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else WEIGHTS
    console.print(f"dense top-1 accuracy {train(path):.3f}; weights in {path}")
