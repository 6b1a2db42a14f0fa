"""Kernels run as compiled where there is a GPU, and under Triton's interpreter on the CPU where there is none."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when kernels are defined

    from triton.runtime import interpreter

    _patch_tensor = interpreter._patch_lang_tensor

    def _patch_tensor_for_numpy(tensor: Any, scope: Any) -> None:
        """Triton 3.6 turns arrays of one element into loop bounds by `int()`, which NumPy 2.4 refuses."""
        _patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = _patch_tensor_for_numpy

from sparsevit.engine import FastBackbone
from sparsevit.engine.kernels import linear, merge, pair_attention
from sparsevit.engine.kernels.folded import Weights
from sparsevit.engine.kernels.rows import Rows
from sparsevit.model import SparseSwin, backbone
from sparsevit.model.windows import window_table

ON_GPU = torch.cuda.is_available()
# The interpreter has no bfloat16 products; on a GPU, float32 products are rounded to TF32.
DTYPES = [torch.bfloat16, torch.float16] if ON_GPU else [torch.float32, torch.float16]
TOLERANCE = {torch.float32: 2e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Of ||found - expected|| / ||expected||; GELU is a polynomial, good to 1e-4."""


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if ON_GPU else "cpu")


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture
def seeded(request: pytest.FixtureRequest) -> None:
    """Each test draws numbers of its own, the same in every run."""
    torch.manual_seed(sum(map(ord, request.node.name)))


@pytest.fixture(params=[False, True], ids=["", "maps"])
def maps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether blocks are loaded and stored by tensor maps, which the interpreter has too."""
    for module in (linear, merge, pair_attention):
        monkeypatch.setattr(module, "has_maps", lambda x: True)
    if request.param and torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("no tensor maps before compute capability 9.0")
    return bool(request.param)


@pytest.fixture
def make_rows(device: torch.device) -> Callable[..., Rows]:
    """Kept windows of a map in an order drawn for each image."""

    def build(batch: int, size: tuple[int, int], window: int, shift: int, kept: int | None = None) -> Rows:
        table = window_table(*size, window, shift, torch.device("cpu"))
        order = torch.stack([torch.randperm(table.windows) for _ in range(batch)])
        place = table.index[order].flatten(1)
        image = torch.arange(batch)[:, None]
        rows = torch.where(place < table.tokens, image * table.tokens + place, -1)
        return Rows(rows.int().to(device), order.int().to(device), table.windows if kept is None else kept)

    return build


def _double(value: Any) -> Any:
    """The same arguments in float64."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, Weights):
        bias = value.bias.double()
        padding = value.padding.double() if value.pads_after_norm else bias
        return replace(value, weight=value.weight.double(), bias=bias, padding=padding)
    return tuple(map(_double, value)) if isinstance(value, tuple) else value


@pytest.fixture(scope="session")
def as_double() -> Callable[[Any], Any]:
    return _double


@pytest.fixture(scope="session")
def error() -> Callable[[Tensor, Tensor], float]:
    """Relative error of the whole; NaN if a value was never written."""

    def measure(found: Tensor, expected: Tensor) -> float:
        return ((found.double() - expected.double()).norm() / expected.double().norm()).item()

    return measure


@pytest.fixture
def check(dtype: torch.dtype, error: Callable[[Tensor, Tensor], float]) -> Callable[..., Tensor]:
    """Run a kernel, and its reference in float64, on the same arguments, of which the one at `out` is written."""

    def run(kernel: Any, reference: Any, arguments: tuple[Any, ...], out: int, **keywords: Any) -> Tensor:
        expected = [_double(value) for value in arguments]
        expected[out] = expected[out].clone()
        reference(*expected, **{name: _double(value) for name, value in keywords.items()})
        kernel(*arguments, **keywords)
        found: Tensor = arguments[out]
        assert error(found, expected[out]) < TOLERANCE[dtype]
        return found

    return run


@pytest.fixture(scope="session")
def make() -> Callable[..., SparseSwin]:
    """A small backbone with weights that make every part matter."""

    def build(seed: int = 0, **arguments: Any) -> SparseSwin:
        settings: dict[str, Any] = {
            "embed_dims": 32,
            "depths": (2, 2),
            "num_heads": (1, 2),
            "out_indices": (0, 1),
        } | arguments
        torch.manual_seed(seed)
        model = SparseSwin(**settings)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        return model.eval()

    return build


@pytest.fixture(scope="session")
def tolerance() -> dict[torch.dtype, float]:
    return TOLERANCE


@pytest.fixture
def plain_maps(monkeypatch: pytest.MonkeyPatch) -> Callable[[FastBackbone, SparseSwin, Tensor], tuple[Tensor, ...]]:
    """The plain backbone's maps in float64 on the windows that `fast` kept last: near ties may rank otherwise."""

    def run(fast: FastBackbone, model: SparseSwin, images: Tensor) -> tuple[Tensor, ...]:
        (plan,) = fast._engine.plans._values.values()
        kept = zip(plan.stages, fast._kept(images), strict=True)
        stages = [stage for stage, counts in kept if min(counts) < stage.windows]
        orders: Iterator[Tensor] = iter([ranked.long() for stage in stages for ranked in stage.ranked])
        plain = copy.deepcopy(model).double()
        plain.sparsity = fast.sparsity
        with monkeypatch.context() as patch, torch.no_grad():
            patch.setattr(backbone, "rank_windows", lambda magnitude, table: next(orders))
            maps = plain(images.double())
        assert next(orders, None) is None
        return maps

    return run
