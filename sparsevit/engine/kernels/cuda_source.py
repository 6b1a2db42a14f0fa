"""Kernels written in CUDA C++, for what Triton has no words for: compiled on first use, launched as Triton's are.

NVRTC compiles them, for compute capability 9.0 and no other. It comes with PyTorch's packages for Linux since 2.10, and
so do the bindings to it and to the driver; compiling needs no GPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsevit.engine.kernels.device import is_sm90

TYPES = {
    torch.bfloat16: {"TYPE": '"bf16"', "BRAIN": "1"},
    torch.float16: {"TYPE": '"f16"', "BRAIN": "0"},
}
"""What `hopper.cuh` wants to be compiled with, by the type of rows and weights."""

OPTIONS = (b"--gpu-architecture=sm_90a", b"-std=c++17", b"-default-device")


@dataclass(frozen=True)
class Source:
    """A kernel, named as the file beside this one that it stands in.

    definitions: macros that it is compiled with.
    threads, shared: of a program, shared memory in bytes.
    """

    name: str
    definitions: tuple[tuple[str, str], ...]
    threads: int
    shared: int


def runs_on(device: torch.device) -> bool:
    """Whether such kernels can be compiled here and run on the device."""
    return is_sm90(device) and has_compiler() and driver_takes_code()


@cache
def has_compiler() -> bool:
    """Whether NVRTC is here."""
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError):  # no bindings, or no library behind them
        return False
    return True


@cache
def driver_takes_code() -> bool:
    """Whether the driver is as new as NVRTC: one of an older major version may refuse what that compiles."""
    from cuda.bindings import driver, nvrtc

    _, version = driver.cuDriverGetVersion()
    _, major, _ = nvrtc.nvrtcVersion()
    return bool(version // 1000 >= major)


@cache
def compiled(source: Source) -> bytes:
    """The machine code.

    Raises:
        RuntimeError: with what the compiler says, if it refuses the source.
    """
    from cuda.bindings import nvrtc

    path = Path(__file__).with_name(f"{source.name}.cu")
    program = _checked(nvrtc.nvrtcCreateProgram(path.read_bytes(), path.name.encode(), 0, [], []))
    try:
        definitions = (f"-D{name}={value}" for name, value in source.definitions)
        options = [*OPTIONS, *(option.encode() for option in (f"-I{path.parent}", *definitions))]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = b" " * _checked(nvrtc.nvrtcGetProgramLogSize(program))
            _checked(nvrtc.nvrtcGetProgramLog(program, log))
            raise RuntimeError(f"{path.name} does not compile: {status.name}\n{log.decode().rstrip(chr(0))}")
        code: bytes = b" " * _checked(nvrtc.nvrtcGetCUBINSize(program))
        _checked(nvrtc.nvrtcGetCUBIN(program, code))
        return code
    finally:
        nvrtc.nvrtcDestroyProgram(program)


@cache
def _loaded(source: Source, device: torch.device) -> Any:
    """The kernel on the device, which is the current one."""
    from cuda.bindings import driver

    module = _checked(driver.cuModuleLoadData(compiled(source)))
    function = _checked(driver.cuModuleGetFunction(module, source.name.encode()))
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    _checked(driver.cuFuncSetAttribute(function, attribute, source.shared))
    return function


def launch(source: Source, programs: int, arguments: Sequence[Any], device: torch.device, *, dependent: bool) -> None:
    """Run so many programs on the device's current stream.

    Args:
        arguments: in the kernel's order: tensors, whose addresses it gets, tensor maps, integers of 32 bits and floats.
        dependent: whether programs are in place while the kernel before ends, see `dependent.py`.
    """
    from cuda.bindings import driver

    held = [_held(argument) for argument in arguments]
    addresses = (ctypes.c_void_p * len(held))(*map(_address, held))
    config = driver.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = programs, 1, 1
    config.blockDimX, config.blockDimY, config.blockDimZ = source.threads, 1, 1
    config.sharedMemBytes = source.shared
    config.hStream = driver.CUstream(torch.cuda.current_stream(device).cuda_stream)
    if dependent:
        early = driver.CUlaunchAttribute()
        early.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        value = driver.CUlaunchAttributeValue()
        value.programmaticStreamSerializationAllowed = 1
        early.value = value
        config.attrs, config.numAttrs = [early], 1
    with torch.cuda.device(device):
        _checked(driver.cuLaunchKernelEx(config, _loaded(source, device), ctypes.addressof(addresses), 0))


def tensor_map(matrix: Tensor, rows: int, panels: int) -> Any:
    """A matrix in panels of 64 columns, of which one load brings so many, and of each so many rows; 0 beyond its edges.

    Lines of 128 bytes are swizzled, as tensor cores read them from shared memory. Where a load begins is told by
    column of the panel, row and panel.
    """
    from cuda.bindings import driver

    height, width = matrix.shape
    types = {
        torch.bfloat16: driver.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        torch.float16: driver.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
    }
    return _checked(
        driver.cuTensorMapEncodeTiled(
            types[matrix.dtype],
            3,
            matrix.data_ptr(),
            [driver.cuuint64_t(size) for size in (64, height, width // 64)],
            [driver.cuuint64_t(stride) for stride in (width * 2, 128)],  # bytes from row to row, from panel to panel
            [driver.cuuint32_t(size) for size in (64, rows, panels)],
            [driver.cuuint32_t(1)] * 3,
            driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
            driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    )


def _held(argument: Any) -> Any:
    """An argument as it lies in memory."""
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    if isinstance(argument, float):
        return ctypes.c_float(argument)
    return ctypes.c_int(argument) if isinstance(argument, int) else argument


def _address(held: Any) -> int:
    """Where it lies; tensor maps know it themselves."""
    return int(held.getPtr()) if hasattr(held, "getPtr") else ctypes.addressof(held)


def _checked(result: tuple[Any, ...]) -> Any:
    """What a call of the bindings returns beside its status.

    Raises:
        RuntimeError: if that is no success.
    """
    status, *values = result
    if status.value:
        raise RuntimeError(f"CUDA: {status.name}")
    return values[0] if values else None
