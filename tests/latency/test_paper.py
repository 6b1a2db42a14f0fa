from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsevit.errors import UserError
from sparsevit.latency.paper import REQUIRED, STEPS, TIMED, WARM_UP, PaperTiming, middle_half, survey_as_paper
from sparsevit.latency.target import Target
from sparsevit.sparsity import Sparsity, SparsitySpace

SPACE = SparsitySpace()
TARGET = Target("cpu", 1, batch=4, size=(64, 64))


def test_each_configuration_gets_its_passes_and_the_middle_half_counts(clock_type: Any, backbone_type: Any) -> None:
    """Passes take 1 ms to warm up, then in turns 10, 20, 30 and 400 ms; the outer quarters do not count."""
    passes: list[int] = []

    def cost(sparsity: Sparsity) -> float:
        passes.append(1)
        place = (len(passes) - 1) % (WARM_UP + TIMED)
        ms = 1.0 if place < WARM_UP else (10.0, 20.0, 30.0, 400.0)[place % 4]
        return ms if sparsity.is_dense else ms / 2

    clock = clock_type()
    backbone = backbone_type(clock, cost)
    steps: list[int] = []
    found = survey_as_paper(
        backbone, TARGET, [SPACE.dense, SPACE.uniform("0.5")], clock=clock, step=lambda n=1, note="": steps.append(n)
    )
    assert [timing.mean_ms for timing in found.timings] == pytest.approx([25, 12.5])
    assert [seen[0] for seen in backbone.seen] == ["0/0/0,0,0/0"] * 1000 + ["0.5/0.5/0.5,0.5,0.5/0.5"] * 1000
    assert {seen[1] for seen in backbone.seen} == {(4, 3, 64, 64)}
    assert sum(steps) == 2 * STEPS
    assert found.peak_bytes == (None, None)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"batch": 1}, "the paper's protocol has batch 4, not 1"),
        ({"dtype": "bfloat16"}, "the paper's protocol has dtype float32, not bfloat16"),
        ({"engine": "compiled"}, "the paper's protocol has engine eager, not compiled"),
        ({"scope": "detector"}, "the paper's protocol has scope backbone, not detector"),
    ],
)
def test_another_target_is_not_the_papers(
    clock_type: Any, backbone_type: Any, changes: dict[str, Any], line: str
) -> None:
    clock = clock_type()
    target = Target("cpu", size=(64, 64), **{**REQUIRED, **changes})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=line):
        survey_as_paper(backbone_type(clock, lambda sparsity: 1.0), target, [SPACE.dense], clock=clock)
    assert clock() == 0


def test_the_interval_covers_the_mean_of_a_skewed_noise_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    truth = middle_half(rng.gamma(2, size=1_000_000)).mean_ms
    found = [middle_half(rng.gamma(2, size=500)) for _ in range(400)]
    covered = sum(one.low_ms <= truth <= one.high_ms for one in found)
    assert 0.92 <= covered / 400 <= 0.98


def test_one_pass_is_its_own_mean() -> None:
    assert middle_half(np.array([3.0])) == PaperTiming(3.0, 3.0, 3.0)
