"""CUDA C++ compiles for the GPU that it is made for, which need not be there."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
pytest.importorskip("cuda.bindings.nvrtc")

import triton

from sparsevit.engine.kernels.cuda_source import compiled
from sparsevit.engine.kernels.shared_feed_forward import source

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@pytest.mark.parametrize("dtype_", [torch.bfloat16, torch.float16])
def test_what_a_program_takes_is_there(tmp_path: Path, dtype_: torch.dtype) -> None:
    code = tmp_path / "kernel.cubin"
    code.write_bytes(compiled(source(dtype_)))
    told = subprocess.run([CUOBJDUMP, "-res-usage", code], capture_output=True, text=True, check=True).stdout
    assert f"Function {source(dtype_).name}:" in told
    taken = {name: int(number) for name, number in re.findall(r"\b([A-Z]+):(\d+)", told)}
    assert taken["REG"] * source(dtype_).threads <= 65536
    assert taken["STACK"] == 0
    assert taken["LOCAL"] == 0


def test_a_source_that_does_not_compile_says_why() -> None:
    whole = source(torch.bfloat16)
    definitions = tuple(pair for pair in whole.definitions if pair[0] != "TYPE")
    with pytest.raises(RuntimeError, match=r"shared_feed_forward\.cu does not compile: NVRTC_ERROR(.|\n)*TYPE"):
        compiled(replace(whole, definitions=definitions))
