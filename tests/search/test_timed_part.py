from __future__ import annotations

from types import SimpleNamespace

import pytest
from torch import nn

from sparsevit.errors import UserError
from sparsevit.latency.target import Target
from sparsevit.search.factory import timed_part


def test_the_scope_says_which_part_of_an_evaluator_is_timed() -> None:
    backbone, detector = nn.Identity(), nn.Identity()
    both = SimpleNamespace(backbone=lambda: backbone, detector=lambda: detector)
    assert timed_part(both, Target(), "mine:make") is backbone
    assert timed_part(both, Target(scope="detector"), "mine:make") is detector


def test_an_evaluator_without_a_detector_is_refused() -> None:
    alone = SimpleNamespace(backbone=nn.Identity)
    with pytest.raises(
        UserError, match=r"target.scope = 'detector', but mine:make has no detector\(\): write backbone"
    ):
        timed_part(alone, Target(scope="detector"), "mine:make")
