from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsevit.errors import UserError
from sparsevit.latency import memory
from sparsevit.latency.memory import MemoryShortError, fitting, host_free, is_out_of_memory, require_host_memory
from sparsevit.latency.paper import survey_as_paper
from sparsevit.latency.target import Target
from sparsevit.latency.timing import measure
from sparsevit.model import SparseSwin
from sparsevit.sparsity import Sparsity

CPU_ERROR = "[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried …"


def pixels(target: Target) -> int:
    return target.batch * target.size[0] * target.size[1]


def room_for(most: int) -> Any:
    """Attempts that run out of memory on more than so many pixels."""

    def attempt(_: object, target: Target) -> None:
        if pixels(target) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    return attempt


@pytest.mark.parametrize(
    ("most", "fits"),
    [
        (8 * 640 * 480, (8, (640, 480))),
        (3 * 640 * 480, (2, (640, 480))),
        (640 * 480, (1, (640, 480))),
        (640 * 480 - 1, (1, (320, 224))),
        (64 * 32, (1, (64, 32))),
    ],
)
def test_what_fits_is_half_the_batch_and_then_half_the_size(most: int, fits: tuple[int, tuple[int, int]]) -> None:
    target = Target("cpu", 1, batch=16, size=(640, 480))
    found = fitting(torch.nn.Identity(), target, room_for(most))
    assert found == replace(target, batch=fits[0], size=fits[1])


def test_nothing_fits_where_there_is_no_room_at_all() -> None:
    assert fitting(torch.nn.Identity(), Target("cpu", batch=4), room_for(0)) is None


def test_other_failures_are_not_taken_for_it() -> None:
    def attempt(_: object, target: Target) -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fitting(torch.nn.Identity(), Target("cpu", batch=4), attempt)
    assert is_out_of_memory(RuntimeError(CPU_ERROR))
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(ValueError(CPU_ERROR))


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, RuntimeError])
@pytest.mark.parametrize("as_paper", [False, True])
def test_a_device_that_is_too_small_says_what_fits(
    clock_type: Any, backbone_type: Any, kind: type[Exception], as_paper: bool
) -> None:
    class Large(backbone_type):  # type: ignore[misc]
        def forward(self, images: torch.Tensor) -> Any:
            if len(images) > 2:
                raise kind(CPU_ERROR)
            return super().forward(images)

    clock = clock_type()
    backbone = Large(clock, lambda sparsity: 1.0)
    dense = Sparsity.of(None, backbone.depths)
    target = Target("cpu", 1, batch=4 if as_paper else 11, size=(64, 96))
    line = rf"^no memory left on cpu for batch {target.batch} at 64x96: batch 2 at 64x96 fits$"
    with pytest.raises(MemoryShortError, match=line):
        survey_as_paper(backbone, target, [dense], clock=clock) if as_paper else measure(
            backbone, target, [dense], clock=clock
        )
    assert issubclass(MemoryShortError, UserError)


def test_where_nothing_fits_it_says_so(clock_type: Any, backbone_type: Any) -> None:
    def fail(sparsity: Sparsity) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    clock = clock_type()
    with pytest.raises(MemoryShortError, match="nor for anything smaller: close other programs"):
        measure(backbone_type(clock, fail), Target("cpu", 1, size=(64, 96)), [], clock=clock)


def test_a_cpu_refuses_a_batch_before_the_system_kills_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """One image takes some megabytes here; 60 MB are free, as told, and thousands of images do not fit them."""
    monkeypatch.setattr(memory, "host_free", lambda: 60 << 20)
    backbone = SparseSwin(embed_dims=16, num_heads=(1, 2, 4, 8)).eval()
    target = Target("cpu", 1, batch=4096, size=(448, 448))
    with pytest.raises(
        MemoryShortError, match=r"no memory left on cpu for batch 4096 at 448x448: batch \d+ at"
    ) as told:
        measure(backbone, target, ["0.5"])
    fits = int(str(told.value).split("batch ")[2].split()[0])
    assert 1 <= fits < 60


def test_memory_is_only_tried_where_it_could_be_short(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[Target] = []

    def attempt(_: object, target: Target) -> None:
        attempts.append(target)

    monkeypatch.setattr(memory, "host_free", lambda: 1 << 40)
    require_host_memory(torch.nn.Identity(), Target("cpu", batch=64), attempt)
    monkeypatch.setattr(memory, "host_free", lambda: None)
    require_host_memory(torch.nn.Identity(), Target("cpu", batch=64), attempt)
    monkeypatch.setattr(memory, "host_free", lambda: 1 << 20)
    require_host_memory(torch.nn.Identity(), Target("cpu", batch=1), attempt)
    require_host_memory(torch.nn.Identity(), Target("cuda:0", batch=64), attempt)
    assert attempts == []
    require_host_memory(torch.nn.Identity(), Target("cpu", batch=64), attempt)
    assert [target.batch for target in attempts] == [1, 1]  # once for what the first use of libraries takes


def test_free_memory_is_the_systems_or_the_containers(tmp_path: Path) -> None:
    assert host_free(tmp_path, tmp_path) is None
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    5000 kB\n")
    assert host_free(tmp_path, tmp_path) == 5000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    assert host_free(tmp_path, tmp_path) == 5000 * 1024
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    assert host_free(tmp_path, tmp_path) == 2_000_000


@pytest.mark.gpu
def test_a_gpu_says_what_fits_and_has_its_memory_back() -> None:
    backbone = SparseSwin(embed_dims=32, num_heads=(1, 2, 4, 8)).eval()
    free = torch.cuda.mem_get_info()[0]
    torch.cuda.empty_cache()
    with pytest.raises(MemoryShortError, match=r"batch \d+ at 2048x2048 fits"):
        measure(backbone, Target("cuda:0", batch=4096, size=(2048, 2048)), ["0.5"])
    assert torch.cuda.mem_get_info()[0] > 0.9 * free
