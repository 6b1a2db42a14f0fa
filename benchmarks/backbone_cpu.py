"""The engine on a CPU, dense and sparse, beside the plain backbone and timm's Swin of the same size, in turns.

    python benchmarks/backbone_cpu.py                  # the built-in supernet's size, 448x448, batch 1, two threads
    python benchmarks/backbone_cpu.py --threads 1 --seconds 60
"""  # fmt: skip

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from sparsevit.engine import accelerate
from sparsevit.model import SparseSwin

DIGITS = {"embed_dims": 32, "depths": (2, 2, 6, 2), "num_heads": (2, 4, 8, 16)}
RATIOS = ("dense", 0.2, 0.4, 0.6, 0.8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=448)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    images = torch.randn(options.batch, 3, options.size, options.size)
    plain = SparseSwin(**DIGITS).eval()
    backbone = accelerate(plain)
    calls: dict[str, Callable[[], Any]] = {}
    for ratio in RATIOS:
        calls[f"sparsevit {ratio}"] = lambda ratio=ratio: (setattr(backbone, "sparsity", ratio), backbone(images))
    calls["plain dense"] = lambda: plain(images)
    try:
        calls["timm dense"] = timm(options.size, images)
    except ImportError as error:
        print(f"timm: skipped, {error}")
    samples: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    with torch.inference_mode():
        while time.perf_counter() - start < options.seconds or len(samples["sparsevit dense"]) < 5:
            for name, call in calls.items():
                call()  # what ran before leaves its own data in the caches
                begin = time.perf_counter()
                call()
                samples[name].append((time.perf_counter() - begin) * 1000)
    dense = statistics.median(samples["sparsevit dense"])
    print(f"{options.threads} threads, float32, batch {options.batch}, {options.size}x{options.size}; medians")
    for name, found in samples.items():
        ms = statistics.median(found)
        print(f"{name:16s} {ms:8.2f} ms  {dense / ms:6.2f}x of sparsevit dense  ({len(found)} samples)")


def timm(size: int, images: torch.Tensor) -> Callable[[], Any]:
    import timm as library

    model = library.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=size,
        embed_dim=DIGITS["embed_dims"],
        depths=DIGITS["depths"],
        num_heads=DIGITS["num_heads"],
        features_only=True,
    ).eval()
    return lambda: model(images)


if __name__ == "__main__":
    main()
