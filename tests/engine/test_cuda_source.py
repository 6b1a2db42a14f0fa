"""CUDA C++ compiles for the GPU that it is made for, which need not be there."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytest.importorskip("triton")
pytest.importorskip("cuda.bindings.nvrtc")

import triton

from sparsevit.engine.kernels import chained_feed_forward, shared_feed_forward
from sparsevit.engine.kernels.cuda_source import compiled, driver_takes_code

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@pytest.mark.parametrize("dtype_", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("module", [chained_feed_forward, shared_feed_forward])
def test_what_a_program_takes_is_there(tmp_path: Path, module: ModuleType, dtype_: torch.dtype) -> None:
    source, code = module.source(dtype_), tmp_path / "kernel.cubin"
    code.write_bytes(compiled(source))
    told = subprocess.run([CUOBJDUMP, "-res-usage", code], capture_output=True, text=True, check=True).stdout
    assert f"Function {source.name}:" in told
    taken = {name: int(number) for name, number in re.findall(r"\b([A-Z]+):(\d+)", told)}
    assert taken["REG"] * source.threads <= 65536
    assert taken["STACK"] == 0
    assert taken["LOCAL"] == 0


def test_a_source_that_does_not_compile_says_why() -> None:
    whole = shared_feed_forward.source(torch.bfloat16)
    definitions = tuple(pair for pair in whole.definitions if pair[0] != "TYPE")
    with pytest.raises(RuntimeError, match=r"shared_feed_forward\.cu does not compile: NVRTC_ERROR(.|\n)*TYPE"):
        compiled(replace(whole, definitions=definitions))


@pytest.mark.parametrize(("version", "takes"), [(13000, True), (13010, True), (12090, False), (14000, True)])
def test_a_driver_older_than_the_compiler_is_not_asked(
    monkeypatch: pytest.MonkeyPatch, version: int, takes: bool
) -> None:
    from cuda.bindings import driver, nvrtc

    monkeypatch.setattr(driver, "cuDriverGetVersion", lambda: (driver.CUresult.CUDA_SUCCESS, version))
    monkeypatch.setattr(nvrtc, "nvrtcVersion", lambda: (nvrtc.nvrtcResult.NVRTC_SUCCESS, 13, 0))
    assert driver_takes_code.__wrapped__() is takes
