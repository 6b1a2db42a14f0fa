from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch

from sparsevit.latency.engines import ENGINES
from sparsevit.latency.running import noise
from sparsevit.latency.target import Target
from sparsevit.latency.timing import survey
from sparsevit.model import SparseSwin
from sparsevit.sparsity import Sparsity, SparsitySpace

TEXTS = ["0/0/0,0,0/0", "0.3/0/0.2,0.4,0.4/0.5", "0.6/0.6/0.6,0.6,0.6/0.6", "0.1/0.2/0,0.1,0.8/0"]


def forward(engine: str, backbone: torch.nn.Module, images: torch.Tensor, sparsities: list[Sparsity]) -> list[Any]:
    """Last feature map under each sparsity, each run twice; the engine gets a backbone of its own."""
    import copy

    with torch.inference_mode(), ENGINES[engine].around():
        prepare = ENGINES[engine].build(copy.deepcopy(backbone), images, True)
        found = []
        for sparsity in sparsities * 2:
            call = prepare(sparsity)
            call()
            found.append(call()[-1].float().cpu().clone())
    return found


@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns about its own parts
def test_compiled_blocks_compute_the_same_and_a_new_sparsity_compiles_nothing() -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    backbone = SparseSwin(embed_dims=8, depths=(2,), num_heads=(1,), out_indices=(0,)).eval()
    images = torch.randn(1, 3, 112, 112)
    sparsities = [Sparsity.parse(text) for text in ("0", "0.5", "0.3", "0.8", "0.1")]
    eager = forward("eager", backbone, images, sparsities)
    counters.clear()
    with torch.inference_mode(), ENGINES["compiled"].around():
        prepare = ENGINES["compiled"].build(backbone, images, True)
        for number, sparsity in enumerate(sparsities):
            (features,) = prepare(sparsity)()
            assert torch.allclose(features, eager[number], atol=1e-4)
            # plain and shifted, each for all windows and for some
            assert counters["stats"]["unique_graphs"] == (2 if number == 0 else 4)
    torch._dynamo.reset()


def test_the_fast_engine_computes_the_same_without_a_gpu() -> None:
    backbone = SparseSwin(embed_dims=8, depths=(2,), num_heads=(1,), out_indices=(0,)).eval()
    images = torch.randn(1, 3, 112, 112)
    sparsities = [Sparsity.parse(text) for text in ("0", "0.5")]
    expected = forward("eager", backbone, images, sparsities)
    for found, exact in zip(forward("fast", backbone, images, sparsities), expected, strict=True):
        assert torch.allclose(found, exact, atol=1e-4)


def test_noise_is_the_same_every_time() -> None:
    target = Target("cpu", 1, "bfloat16", batch=2, size=(64, 96))
    images = noise(target)
    assert images.shape == (2, 3, 64, 96)
    assert images.dtype == torch.bfloat16
    assert torch.equal(images, noise(target))
    assert 0.9 < images.float().std() < 1.1


@pytest.mark.gpu
@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "eager"])
@pytest.mark.filterwarnings("ignore")
def test_every_engine_computes_what_eager_does_on_a_gpu(engine: str) -> None:
    torch.manual_seed(0)
    backbone = SparseSwin(embed_dims=32, num_heads=(1, 2, 4, 8)).eval().cuda()
    images = torch.randn(2, 3, 224, 230).cuda()
    sparsities = [Sparsity.parse(text) for text in TEXTS]
    eager, other = (forward(name, backbone, images, sparsities) for name in ("eager", engine))
    for one, two in zip(eager, other, strict=True):
        assert torch.allclose(one, two, atol=2e-3)


@pytest.mark.gpu
def test_graphs_of_many_sparsities_share_their_memory() -> None:
    backbone = SparseSwin(embed_dims=32, num_heads=(1, 2, 4, 8)).eval()
    target = Target("cuda:0", dtype="bfloat16", batch=4, size=(448, 448), engine="graph")
    few, many = ([space for _, space in zip(range(count), SparsitySpace(), strict=False)] for count in (2, 60))
    peaks = [survey(backbone, target, each, budget_s=0.1).peak_bytes for each in (few, many)]
    assert max(peaks[1]) < 1.5 * max(peaks[0])  # type: ignore[type-var,operator]


@pytest.mark.gpu
def test_short_replays_are_timed_several_at_once_and_longer_batches_take_longer() -> None:
    backbone = SparseSwin(embed_dims=32, num_heads=(1, 2, 4, 8)).eval()
    dense = Sparsity.of(None, backbone.depths)
    small, large = (
        survey(backbone, Target("cuda:0", batch=batch, size=(448, 448), engine="graph"), [dense], budget_s=2)
        for batch in (1, 32)
    )
    assert small.timings[0].uncertainty < 0.02
    assert small.timings[0].median_ms < large.timings[0].median_ms
    assert small.peak_bytes[0] is not None
    assert large.peak_bytes[0] is not None
    assert small.peak_bytes[0] < large.peak_bytes[0]
