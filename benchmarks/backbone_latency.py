"""The table of backbone latencies on a GPU: this engine, the plain backbone and timm's, dense and sparse, in one run.

python benchmarks/backbone_latency.py                        # Swin-T, 672x672, batch 4, bfloat16
python benchmarks/backbone_latency.py --variant base --size 1344 --batch 1 --dtype float16
python benchmarks/backbone_latency.py --kernels              # each kernel alone and in a pass, against its floor
python benchmarks/backbone_latency.py --tune tiles.json      # block sizes tried in whole passes, best first
"""

from __future__ import annotations

import argparse
import time

import torch
from timing import VARIANTS, build, flops, in_graph, medians, sparsities

from sparsevit.engine import accelerate
from sparsevit.model import SparseSwin

TIMM = {
    "tiny": "swin_tiny_patch4_window7_224",
    "small": "swin_small_patch4_window7_224",
    "base": "swin_base_patch4_window7_224",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=VARIANTS, default="tiny")
    parser.add_argument("--size", type=int, nargs="+", default=[672], help="pixels, one side or height and width")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--dtype", choices=["bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long to measure each engine")
    parser.add_argument("--engines", nargs="+", choices=["fast", "plain", "timm"], default=["fast", "plain", "timm"])
    parser.add_argument("--kernels", action="store_true", help="time each kernel alone and in a pass")
    parser.add_argument("--sparsity", default="dense", help="for --kernels and --tune")
    parser.add_argument("--tune", metavar="FILE", help="try block sizes, write all timings as JSON")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no CUDA device")
    size = (options.size * 2)[0], (options.size * 2)[1]
    dtype = getattr(torch, options.dtype)
    model = build(options.variant).cuda()
    images = torch.randn(options.batch, 3, *size, device="cuda", dtype=dtype)
    print(
        f"{torch.cuda.get_device_name()}, Swin {options.variant}, {size[0]}x{size[1]}, batch {options.batch}, "
        f"{options.dtype}, torch {torch.__version__}; medians of CUDA graph replays"
    )
    if options.kernels or options.tune:
        import kernels

        kernels.report(model, images, dtype, options.sparsity, tune=options.tune)
        return
    for name in options.engines:
        try:
            {"fast": fast, "plain": plain, "timm": timm}[name](model, images, dtype, options)
        except ImportError as error:
            print(f"{name}: skipped, {error}")


def fast(model: SparseSwin, images: torch.Tensor, dtype: torch.dtype, options: argparse.Namespace) -> None:
    backbone = accelerate(model, dtype=dtype)
    replays = []
    for name, sparsity in sparsities(model).items():
        start = time.perf_counter()
        backbone.sparsity = sparsity
        replays.append(backbone.replay(images))
        torch.cuda.synchronize()
        replays[-1].images.copy_(images)
        print(f"  first use of {name}: {time.perf_counter() - start:.2f} s")
    show("fast", model, images, medians(replays, options.seconds))


def plain(model: SparseSwin, images: torch.Tensor, dtype: torch.dtype, options: argparse.Namespace) -> None:
    import copy

    module = copy.deepcopy(model).to(dtype)
    replays = []
    with torch.no_grad():
        for sparsity in sparsities(model).values():
            module.sparsity = sparsity
            replays.append(in_graph(lambda: module(images)))
        show("plain", model, images, medians(replays, options.seconds))


def timm(model: SparseSwin, images: torch.Tensor, dtype: torch.dtype, options: argparse.Namespace) -> None:
    import timm as library

    height, width = images.shape[-2:]
    peer = library.create_model(TIMM[options.variant], img_size=(height, width), features_only=True)
    peer = peer.to("cuda", dtype).eval()
    compiled = torch.compile(peer)
    with torch.no_grad():
        eager, fused = medians([in_graph(lambda: peer(images)), in_graph(lambda: compiled(images))], options.seconds)
    print(f"timm {library.__version__}, dense: {eager:.3f} ms in a graph, {fused:.3f} ms compiled and in a graph")


def show(engine: str, model: SparseSwin, images: torch.Tensor, times: list[float]) -> None:
    """One line per configuration: time, speed-up over the engine's own dense, and the share of the ideal it is."""
    found = sparsities(model)
    batch, size = images.shape[0], (images.shape[2], images.shape[3])
    work = [flops(model, sparsity, size, batch) for sparsity in found.values()]
    print(f"{engine:6s} {'configuration':14s} {'ms':>8s} {'speed-up':>9s} {'of ideal':>9s} {'TFLOP/s':>8s}")
    for name, ms, operations in zip(found, times, work, strict=True):
        removed = 1 - operations / work[0]
        share = f"{(1 - ms / times[0]) / removed:9.3f}" if removed else " " * 9
        print(f"{engine:6s} {name:14s} {ms:8.4f} {times[0] / ms:9.3f} {share} {operations / ms / 1e9:8.0f}")


if __name__ == "__main__":
    main()
