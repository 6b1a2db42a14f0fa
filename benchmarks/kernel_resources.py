"""What each kernel of a pass takes of a multiprocessor, compiled for an H100 or H200, or another GPU: none is needed.

Kernels are short, and the next one can be in place before one ends only if a program of it finds room beside those that
run (4 us were seen to hang on it); so the last column counts the programs that do. Norms are left out: they run beside.
Whatever the GPU, programs are shared out among the 132 multiprocessors of an H200.

python benchmarks/kernel_resources.py --sparsity 0.6
python benchmarks/kernel_resources.py --variant base --size 1344 --batch 1
python benchmarks/kernel_resources.py --capability 86   # whether all of them fit on an RTX 3090 or A6000
"""

from __future__ import annotations

import argparse
import math
import pkgutil
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import triton
from kernels import NAMES
from timing import VARIANTS, build
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from sparsevit.engine import kernels as package
from sparsevit.engine.forward import forward
from sparsevit.engine.kernels.cuda_source import Source, compiled
from sparsevit.engine.plan import Shape, make_plan
from sparsevit.engine.tuning import MULTIPROCESSORS
from sparsevit.engine.weights import prepare
from sparsevit.errors import UserError
from sparsevit.sparsity import Sparsity, windows_per_stage

MODULES = [import_module(f"{package.__name__}.{module.name}") for module in pkgutil.iter_modules(package.__path__)]
TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int32: "i32"}
REGISTERS = 65536
"""Of a multiprocessor."""


@dataclass(frozen=True)
class Limits:
    """Of a compute capability.

    shared: bytes that a program may have; a multiprocessor has 1024 more, which each takes besides.
    warps: of a multiprocessor.
    """

    shared: int
    warps: int


LIMITS = {
    80: Limits(163 * 1024, 64),
    86: Limits(99 * 1024, 48),
    89: Limits(99 * 1024, 48),
    90: Limits(227 * 1024, 64),
}
"""By compute capability."""


@dataclass(frozen=True)
class Kernel:
    """A launch, and what each of its programs takes.

    registers: of all threads.
    shared: bytes, with those that each takes besides.
    spills: bytes of a thread.
    """

    name: str
    programs: int
    warps: int
    registers: int
    shared: int
    spills: int
    instructions: int
    limits: Limits

    @property
    def at_once(self) -> int:
        """Programs of it for which a multiprocessor has room."""
        return min(REGISTERS // self.registers, self._shared // self.shared, self.limits.warps // self.warps)

    @property
    def held(self) -> int:
        """Programs of it that a multiprocessor has while all are busy."""
        return min(self.at_once, math.ceil(self.programs / MULTIPROCESSORS))

    def beside(self, other: Kernel) -> int:
        """Programs of it for which there is room beside those of `other`."""
        return min(
            (REGISTERS - other.held * other.registers) // self.registers,
            (self._shared - other.held * other.shared) // self.shared,
            (self.limits.warps - other.held * other.warps) // self.warps,
        )

    @property
    def _shared(self) -> int:
        return self.limits.shared + 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=VARIANTS, default="tiny")
    parser.add_argument("--size", type=int, nargs="+", default=[672], help="pixels, one side or height and width")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--dtype", choices=["bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--sparsity", default="dense")
    parser.add_argument("--capability", type=int, choices=LIMITS, default=90)
    options = parser.parse_args()
    size = (options.size * 2)[0], (options.size * 2)[1]
    before = None
    dtype = getattr(torch, options.dtype)
    try:
        kernels = chain(options.variant, options.sparsity, options.batch, size, dtype, options.capability)
    except UserError as error:
        parser.error(str(error))
    print(
        f"{'kernel':19s} {'programs':>8s} {'warps':>5s} {'registers':>9s} {'shared KiB':>10s} {'spills':>6s} "
        f"{'instructions':>12s} {'at once':>7s} {'waves':>5s} {'next to the one before':>22s}"
    )
    for kernel in kernels:
        beside = "" if before is None else str(kernel.beside(before))
        print(
            f"{kernel.name:19s} {kernel.programs:8d} {kernel.warps:5d} {kernel.registers // 32 // kernel.warps:9d} "
            f"{kernel.shared / 1024 - 1:10.0f} {kernel.spills:6d} {kernel.instructions:12d} {kernel.at_once:7d} "
            f"{kernel.programs / MULTIPROCESSORS / max(1, kernel.at_once):5.2f} {beside:>22s}"
        )
        before = kernel


@torch.no_grad()
def chain(
    variant: str, sparsity: str, batch: int, size: tuple[int, int], dtype: torch.dtype, capability: int
) -> list[Kernel]:
    """The launches of a pass in order, without norms."""
    model = build(variant)
    counts = windows_per_stage(size, window=model.window_size, patch=model.patch_size)
    found = Sparsity.of(sparsity, model.depths)
    each = iter(found.kept(counts))
    kept = [[next(each) for _ in stage] for stage in found.stages]
    weights = prepare(model, dtype)
    shape = Shape(batch, size, model.patch_size, model.window_size)
    kernels: list[Kernel] = []
    with compiled_only(kernels, capability):
        plan = make_plan(shape, weights, dtype, torch.device("cpu"))
        forward(torch.empty(batch, 3, *size, dtype=dtype), plan, weights, kept)
    return [kernel for kernel in kernels if kernel.name != "norm"]


@contextmanager
def compiled_only(kernels: list[Kernel], capability: int) -> Iterator[None]:
    """Launches compile for a compute capability and run nothing; what each takes is added to `kernels`."""
    hopper = capability >= 90
    before = [(module, dict(vars(module))) for module in MODULES]
    known: dict[Any, tuple[int, int, int, int]] = {}

    def launch(source: Source, programs: int, *_: Any, **__: Any) -> None:
        warps = source.threads // 32
        if source not in known:
            known[source] = _taken(compiled(source), warps, source.shared)
        kernels.append(Kernel(source.name, programs, warps, *known[source], LIMITS[capability]))

    try:
        for module in MODULES:
            for name in (f"_{launcher}" for launcher in NAMES):
                if hasattr(module, name):
                    setattr(module, name, Grid(getattr(module, name), kernels, known, capability))
            for name, value in (
                ("launch_options", lambda x: {"DEPENDENT": hopper} | ({"launch_pdl": True} if hopper else {})),
                ("has_maps", lambda x: hopper),
                ("is_hopper", lambda device: hopper),
                ("is_sm90", lambda device: capability == 90),
                ("driver_takes_code", lambda: True),
                ("tensor_map", lambda matrix, rows, panels: None),
                ("launch", launch),
                ("shared_memory", lambda device: LIMITS[capability].shared),
                ("multiprocessors", lambda device: MULTIPROCESSORS),
                ("has_tanh", lambda x: x.dtype == torch.bfloat16),
            ):
                if hasattr(module, name):
                    setattr(module, name, value)
        yield
    finally:
        for module, names in before:
            vars(module).update(names)


@dataclass(frozen=True)
class Grid:
    """Stands for a kernel: `kernel[grid](...)`."""

    kernel: JITFunction[Any]
    kernels: list[Kernel]
    known: dict[Any, tuple[int, int, int, int]]
    capability: int

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, **keywords: Any) -> None:
            names = self.kernel.arg_names
            values = dict(zip(names, arguments, strict=False)) | {k: v for k, v in keywords.items() if k in names}
            options = {k: v for k, v in keywords.items() if k not in names and v is not None}
            signature = {p.name: "constexpr" if p.is_constexpr else _type(values[p.name]) for p in self.kernel.params}
            constants = {(p.num,): values[p.name] for p in self.kernel.params if p.is_constexpr}
            key = self.kernel.__name__, tuple(signature.items()), tuple(constants.items()), tuple(options.items())
            if key not in self.known:
                aligned = {
                    (p.num,): [["tt.divisibility", 16]] for p in self.kernel.params if signature[p.name][0] == "*"
                }
                self.known[key] = _compile(
                    ASTSource(self.kernel, signature, constants, aligned), options, self.capability
                )
            name = self.kernel.__name__.removeprefix("_")
            self.kernels.append(
                Kernel(name, math.prod(grid), options["num_warps"], *self.known[key], LIMITS[self.capability])
            )

        return launch


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return "*" + TYPES[value.dtype]
    if isinstance(value, int):
        return "i32"
    return f"tensordesc<{TYPES[value.base.dtype]}{list(value.block_shape)}>"


def _compile(source: ASTSource, options: dict[str, Any], capability: int) -> tuple[int, int, int, int]:
    """What a program takes, see `_taken`."""
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = kernel.asm["ptx"]
    for name in re.findall(r"prefetch\.param\.tensormap \[(\w+)\]", ptx):  # named by hand, see `maps.py`
        assert re.search(rf"\.param \.align 64 \.b8 {name}\[128\]", ptx), f"{name} is no tensor map"
    return _taken(kernel.asm["cubin"], options["num_warps"], kernel.metadata.shared)


def _taken(code: bytes, warps: int, shared: int) -> tuple[int, int, int, int]:
    """Registers, shared memory, spills and instructions of a program."""
    tool = str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        usage, listing = (
            subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("-res-usage", "-sass")
        )
    registers, spills = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())  # type: ignore[union-attr]
    instructions = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z]\w+)", listing)
    granted = math.ceil(registers / 8) * 8 * 32 * warps
    return granted, shared + 1024, spills, len(instructions) - instructions.count("NOP")


if __name__ == "__main__":
    main()
