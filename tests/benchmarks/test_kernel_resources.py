"""Kernels are compiled for a GPU that is not there, and what finds room beside what is worked out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from sparsevit.engine.kernels.cuda_source import has_compiler

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize(
    ("options", "first"),
    [
        ("--size 224 --batch 1 --sparsity 0.5 --capability 86", ["score_and_rank", "window_attention", "linear"]),
        ("--size 448 --batch 4 --sparsity 0/0/0.15,0.15,0.15/0", ["window_attention", "linear", "held_feed_forward"]),
    ],
    ids=["small GPU", "H200"],
)
def test_a_table_of_a_pass(options: str, first: list[str]) -> None:
    """Block sizes are those measured on an H200, and there is room for them on smaller GPUs too."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "kernel_resources.py", *options.split()],
        cwd=FOLDER,
        env=environment | {"PYTHONPATH": str(FOLDER.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    head, *rows = [line.split() for line in run.stdout.splitlines()]
    assert head[:3] == ["kernel", "programs", "warps"]
    assert [row[0] for row in rows[:4]] == ["embed", *first]
    names = [row[0] for row in rows]
    assert names.count("merge") == 3
    for name, count in (("chained_feed_forward", 2), ("shared_feed_forward", 6)):
        assert names.count(name) == (count if "86" not in options and has_compiler() else 0)
    for _, programs, warps, registers, _, spills, instructions, at_once, *_ in rows:
        assert int(programs) > 0
        assert 16 <= int(registers) <= 256
        assert int(at_once) >= 1
        assert int(registers) * 32 * int(warps) * int(at_once) <= 65536
        assert int(spills) < 256
        assert int(instructions) > 100


def test_what_finds_room_beside_what(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    from kernel_resources import LIMITS, Kernel

    def kernel(programs: int, warps: int, registers: int, shared: int) -> Kernel:
        return Kernel("", programs, warps, registers * 32 * warps, shared * 1024, 0, 0, LIMITS[90])

    few, many = kernel(132, 8, 128, 121), kernel(1000, 4, 128, 50)
    assert (few.at_once, few.held) == (1, 1)
    assert (many.at_once, many.held) == (4, 4)
    assert many.beside(few) == 2  # the shared memory of two
    assert few.beside(many) == 0
    assert kernel(1000, 4, 40, 1).beside(few) == 6  # registers of six
    assert kernel(1000, 16, 16, 1).beside(kernel(132, 32, 16, 1)) == 2  # warps of two
