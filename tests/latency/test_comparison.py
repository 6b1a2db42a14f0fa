from __future__ import annotations

import json
from typing import Any

import pytest

from sparsevit.errors import UserError
from sparsevit.latency.comparison import PAPER, Comparison, Row, compare, steps
from sparsevit.latency.target import Target
from sparsevit.sparsity import Sparsity, SparsitySpace

SPACE = SparsitySpace()
TARGET = Target("cpu", 1, batch=4, size=(64, 64))


def cost(sparsity: Sparsity) -> float:
    return 100 * (1 - float(sum(sparsity.flat)) / len(sparsity.flat))


@pytest.mark.parametrize("protocol", ["median", "paper"])
def test_dense_comes_first_and_nothing_twice(clock_type: Any, backbone_type: Any, protocol: str) -> None:
    clock = clock_type()
    counted: list[int] = []
    asked = [SPACE.uniform("0.5"), SPACE.dense, SPACE.uniform("0.8"), SPACE.uniform("0.5")]
    found = compare(
        backbone_type(clock, cost),
        TARGET,
        asked,
        protocol=protocol,
        step=lambda advance=1, note="": counted.append(advance),
        clock=clock,
    )
    assert [str(row.sparsity) for row in found.rows] == [str(one) for one in (SPACE.dense, asked[0], asked[2])]
    assert [row.ms for row in found.rows] == pytest.approx([100, 50, 20])
    assert [row.speedup for row in found.rows] == pytest.approx([1, 2, 5])
    assert found.rows[0].windows_kept == 1
    assert found.environment["threads"] == "1"
    assert sum(counted) == steps(protocol, 3)
    assert found.slower == found.no_faster == []
    told = json.loads(json.dumps(found.as_json()))
    assert told["target"] == str(TARGET)
    assert [one["ms"] for one in told["latencies"]] == [row.ms for row in found.rows]
    assert ("500 passes" in told["statistic"]) == (protocol == PAPER)


def row(low: float, high: float, text: str = "0.5/0/0,0,0/0") -> Row:
    ms = (low + high) / 2
    return Row(Sparsity.parse(text), ms, low, high, 9, 10 / ms, 0.5, None)


def test_slower_is_what_is_so_for_certain() -> None:
    dense, slower, same, faster = row(9, 11, "0/0/0,0,0/0"), row(11.5, 12), row(10.5, 12), row(8, 8.9)
    found = Comparison(TARGET, "median", {}, {}, (dense, slower, same, faster), ())
    assert found.slower == [slower]
    assert found.no_faster == [same]
    assert found.as_json()["slower_than_dense"] == ["0.5/0/0,0,0/0"]


def test_an_unknown_protocol_is_refused(clock_type: Any, backbone_type: Any) -> None:
    clock = clock_type()
    with pytest.raises(UserError, match="protocol 'best' is unknown: write median or paper"):
        compare(backbone_type(clock, cost), TARGET, [], protocol="best", clock=clock)
    assert clock() == 0
