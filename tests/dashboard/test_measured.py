from __future__ import annotations

from sparsevit.dashboard.figures.measured import measured_latencies
from sparsevit.latency.comparison import Comparison, Row
from sparsevit.latency.target import Target
from sparsevit.sparsity import Sparsity


def test_each_target_has_a_colour_and_each_sparsity_a_bar_with_its_interval() -> None:
    rows = (
        Row(Sparsity.parse("0/0/0,0,0/0"), 10.0, 9.5, 11.0, 9, 1.0, 1.0, None),
        Row(Sparsity.parse("0.6/0/0.1,0.1,0.1/0"), 5.0, 4.9, 5.2, 9, 2.0, 0.5, None),
    )
    targets = [Target("cpu", 1, batch=batch) for batch in (1, 2)]
    drawn = measured_latencies([Comparison(target, "median", {}, {}, rows, ()) for target in targets])
    first, second = drawn.data
    assert [first.name, second.name] == [str(target) for target in targets]
    assert first.marker.color != second.marker.color
    assert list(first.y) == ["dense", "0.6/0/0.1,0.1,0.1/0"]
    assert list(first.x) == [10.0, 5.0]
    assert [round(value, 6) for value in first.error_x.array] == [1.0, 0.2]
    assert [round(value, 6) for value in first.error_x.arrayminus] == [0.5, 0.1]
