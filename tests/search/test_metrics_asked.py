"""The evaluator is told which metrics a study asks for, if it wants to know."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from sparsevit.errors import UserError
from sparsevit.search.factory import open_supernet
from sparsevit.search.run import search
from sparsevit.search.spec import StudySpec

Load = Callable[..., StudySpec]


def test_names_are_those_of_the_metric_and_beside_it(load: Load) -> None:
    assert load().accuracy.metrics == ("bbox_mAP",)
    spec = load('accuracy.metric=["bbox_mAP", "segm_mAP"]', 'accuracy.also=["bbox_mAP_50", "bbox_mAP"]')
    assert spec.accuracy.metrics == ("bbox_mAP", "segm_mAP", "bbox_mAP_50")
    with pytest.raises(UserError, match=r"accuracy\.also"):
        load("accuracy.also=segm_mAP")


def test_a_factory_with_such_a_parameter_gets_them(
    load: Load, fakes: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    plain = fakes.evaluator

    def knowing(*, metrics: tuple[str, ...], device: str, dtype: str) -> Any:
        told.append(metrics)
        return plain(device=device, dtype=dtype)

    open_supernet(load('accuracy.also=["segm_mAP"]'))  # one that does not ask is not told
    monkeypatch.setattr(fakes, "evaluator", knowing)
    open_supernet(load('accuracy.also=["segm_mAP"]'))
    assert told == [("bbox_mAP", "segm_mAP")]


def test_a_metric_beside_that_is_not_there_is_refused(load: Load) -> None:
    with pytest.raises(UserError, match=r"accuracy\.also = 'mask' is not among .*: bbox_mAP, bbox_mAP_50, segm_mAP"):
        search(load('accuracy.also=["segm_mAP", "mask"]'), trials=5)
