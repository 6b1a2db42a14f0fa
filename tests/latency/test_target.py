from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsevit.errors import UserError
from sparsevit.latency.target import DTYPES, ENGINES, MIN_SIDE, SCOPES, Target, parse_size

sides = st.integers(MIN_SIDE, 4096)
targets = st.builds(
    Target,
    device=st.sampled_from(["auto", "cuda", "cuda:0", "cuda:11"]),
    threads=st.integers(0, 256),
    dtype=st.sampled_from(DTYPES),
    batch=st.integers(1, 64),
    size=st.tuples(sides, sides),
    engine=st.sampled_from(sorted(ENGINES)),
    scope=st.sampled_from(SCOPES),
)


@given(targets)
def test_the_text_form_reads_back(target: Target) -> None:
    assert Target.parse(str(target)) == target
    assert str(Target.parse(str(target))) == str(target)


def test_the_text_form_is_stable_because_ledgers_keep_it() -> None:
    target = Target("cuda:0", 1, "bfloat16", 4, (672, 640), "graph")
    assert str(target) == "cuda:0 threads=1 bfloat16 batch=4 672x640 graph backbone"
    assert str(Target()) == "auto threads=all float32 batch=1 448x448 eager backbone"


def test_equal_targets_are_one_key() -> None:
    assert len({Target(device="cuda"), Target(device="cuda:0"), Target(device="cuda:0", size=[448, 448])}) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"device": "gpu"}, "auto, cpu, or cuda:N"),
        ({"device": "cuda:x"}, "auto, cpu, or cuda:N"),
        ({"dtype": "int8"}, "float32 or bfloat16 or float16"),
        ({"engine": "tensorrt"}, "eager or compiled or graph"),
        ({"scope": "head"}, "backbone or detector"),
        ({"threads": -1}, "threads -1"),
        ({"threads": True}, "threads True"),
        ({"batch": 0}, "batch 0"),
        ({"batch": 1.5}, "batch 1.5"),
        ({"size": (16, 448)}, "image side 16"),
        ({"size": (448,)}, "height and width"),
        ({"size": 448}, "height and width"),
        ({"device": "cpu", "engine": "graph"}, "needs a cuda device"),
        ({"device": "cpu", "engine": "compiled+graph"}, "needs a cuda device"),
    ],
)
def test_what_no_device_could_take_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        replace(Target(), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "cpu", "cpu threads=all float32 batch=one 448x448 eager backbone", "cpu " * 7])
def test_text_that_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="write it like auto threads=all"):
        Target.parse(text)


@pytest.mark.parametrize(("text", "size"), [("448", (448, 448)), (" 448x672 ", (448, 672)), ("448X672", (448, 672))])
def test_sizes_are_one_side_or_height_and_width(text: str, size: tuple[int, int]) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "big", "448x", "x448", "4.5", "-448", "1x2x3"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="image size"):
        parse_size(text)


def test_resolving_names_the_device_and_counts_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    target = Target().resolve()
    assert target == Target("cpu", torch.get_num_threads())
    assert target.resolve() == target
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert Target(engine="graph").resolve() == Target("cuda:0", 1, engine="graph")
    assert Target("cuda:1", 3).resolve() == Target("cuda:1", 3)
    with pytest.raises(UserError, match="cuda:2 is not there: torch sees 2"):
        Target("cuda:2").resolve()


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="torch sees no CUDA device"):
        Target("cuda").resolve()
    with pytest.raises(UserError, match="needs a cuda device"):
        Target(engine="graph").resolve()


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target("cpu", engine="compiled")
    assert target.resolve().engine == "compiled"
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"'compiled' needs a C\+\+ compiler .* install g\+\+, set CXX, or write eager"):
        target.resolve()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="needs a C"):
        target.resolve()
