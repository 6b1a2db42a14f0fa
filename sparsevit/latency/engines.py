"""The ways a backbone can be run, by name. Each makes the forward pass of any sparsity ready to be called.

An engine is one entry of `ENGINES`; targets, the command line and study files know it by its key.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from sparsevit.errors import UserError
from sparsevit.sparsity import Sparsity

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sparsevit.model.protocol import SparseBackbone

__all__ = ["ENGINES", "Call", "Clock", "Engine", "Prepare", "Stopwatch"]

Call = Callable[[], "Sequence[Tensor]"]
"""Does one forward pass, and returns its feature maps."""

Prepare = Callable[[Sparsity], Call]
"""Makes the forward pass of one sparsity ready, so that the call does that pass and nothing else."""

Build = Callable[["nn.Module", "Tensor", bool], Prepare]
"""Makes a backbone ready for images, in inference mode: both are on the device, in the dtype. The backbone is the
engine's to change. The last argument says whether anyone uses the features; if not, calls may return none."""

Stopwatch = Callable[[Callable[[], object], int], float]
"""Milliseconds that a call takes on the device, of so many in a row."""

Clock = Callable[[], float]
"""Seconds from a monotonic clock."""

COMPILERS = ("g++", "clang++", "c++")
RECOMPILES = 256
"""Versions of one block's code that torch may keep: stages x (plain, shifted) x (dense, sparse, one window)."""


@dataclass(frozen=True)
class Engine:
    """One way to run a backbone.

    Attributes:
        build: makes it ready.
        needs_gpu: refuses a CPU.
        needs_compiler: refuses a machine without a C++ compiler.
        replays: its launches cost next to nothing, so short calls may be timed several at once.
        around: entered while a backbone is built and run.
    """

    build: Build
    needs_gpu: bool = False
    needs_compiler: bool = False
    replays: bool = False
    around: Callable[[], AbstractContextManager[object]] = nullcontext

    def check_device(self, name: str, device: str) -> None:
        """Whether the engine runs on a device of this kind at all.

        Raises:
            UserError: if not.
        """
        if self.needs_gpu and device == "cpu":
            raise UserError(f"engine {name!r} replays CUDA graphs and needs a cuda device: write eager for device cpu")

    def check_machine(self, name: str) -> None:
        """Whether this machine has what the engine needs besides the device.

        Raises:
            UserError: if not.
        """
        if self.needs_compiler and not _compiler():
            raise UserError(
                f"engine {name!r} needs a C++ compiler and there is none: install g++, set CXX, or write eager"
            )


def _compiler() -> str | None:
    named = os.environ.get("CXX")
    return next((found for one in ([named] if named else COMPILERS) if (found := shutil.which(one))), None)


def _eager(module: nn.Module, images: Tensor, _: bool) -> Prepare:
    backbone = cast("SparseBackbone", module)

    def prepare(sparsity: Sparsity) -> Call:
        backbone.sparsity = sparsity
        return lambda: backbone(images)

    return prepare


def _compiled(module: nn.Module, images: Tensor, used: bool) -> Prepare:
    """Compiles the blocks, which are nearly all of the work, with the number of kept windows left open.

    So a new sparsity reuses what was compiled: for each kind of block, one version for all windows, one for any other
    number of them, and one for a single window, which torch treats apart. Other backbones than ours are compiled whole.
    """
    from sparsevit.model.block import SwinBlock

    blocks: list[nn.Module] = [part for part in module.modules() if isinstance(part, SwinBlock)]
    for block in blocks:
        block.register_forward_pre_hook(_leave_count_open)
    for part in blocks or [module]:
        part.compile()
    return _eager(module, images, used)


def _leave_count_open(_: nn.Module, inputs: tuple[object, ...]) -> None:
    """Tell the compiler that the number of kept windows varies: `kept`, shape `(B, K)`, a block's last argument."""
    import torch

    kept = inputs[-1]
    if isinstance(kept, torch.Tensor) and kept.shape[1] > 1:
        torch._dynamo.maybe_mark_dynamic(kept, 1)


def _many_versions() -> AbstractContextManager[object]:
    import torch._dynamo.config

    patch: AbstractContextManager[object] = torch._dynamo.config.patch(recompile_limit=RECOMPILES)
    return patch


def _replayed(build: Build) -> Build:
    """One CUDA graph per sparsity of what another engine runs. They share a memory pool, as one runs at a time."""

    def build_graphs(module: nn.Module, images: Tensor, used: bool) -> Prepare:
        import torch

        pool = torch.cuda.graph_pool_handle()
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # one for all: cuBLAS keeps 32 MB for each
        graphs: dict[Sparsity, Call] = {}
        launched = build(module, images, used)

        def capture(sparsity: Sparsity) -> Call:
            call = launched(sparsity)
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # fills caches, compiles and picks kernels, which a capture must not
                call()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                features = tuple(call())
            if not used:  # the pool has their memory back: hundreds of graphs would not fit otherwise
                features = ()

            def replay() -> Sequence[Tensor]:
                graph.replay()
                return features

            return replay

        def prepare(sparsity: Sparsity) -> Call:
            if sparsity not in graphs:
                graphs[sparsity] = capture(sparsity)
            return graphs[sparsity]

        return prepare

    return build_graphs


def _fast(module: nn.Module, images: Tensor, _: bool) -> Prepare:
    """The inference engine: its kernels and graphs on a GPU, the plain backbone on a CPU."""
    from sparsevit.engine import accelerate

    backbone = accelerate(module, dtype=images.dtype)
    if not images.is_cuda:
        return _eager(backbone, images, True)
    replays: dict[Sparsity, Call] = {}

    def prepare(sparsity: Sparsity) -> Call:
        if sparsity not in replays:
            backbone.sparsity = sparsity
            replay = backbone.replay(images)
            replay.images.copy_(images)

            def call() -> Sequence[Tensor]:
                replay()
                return replay.maps

            replays[sparsity] = call
        return replays[sparsity]

    return prepare


ENGINES: Mapping[str, Engine] = MappingProxyType(
    {
        "eager": Engine(_eager),
        "compiled": Engine(_compiled, needs_compiler=True, around=_many_versions),
        "graph": Engine(_replayed(_eager), needs_gpu=True, replays=True),
        "compiled+graph": Engine(
            _replayed(_compiled), needs_gpu=True, needs_compiler=True, replays=True, around=_many_versions
        ),
        "fast": Engine(_fast, replays=True),
    }
)
"""Engines by the name that targets know them by."""
