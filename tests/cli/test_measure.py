"""`sparsevit measure` as the user sees it; timing itself is tested in tests/latency."""

from __future__ import annotations

import json
import sys
import types

import pytest

from sparsevit.cli.app import main
from sparsevit.cli.measure import kept_share
from sparsevit.errors import UserError
from sparsevit.model import SparseSwin
from sparsevit.sparsity import Sparsity

SMALL = ["--size", "112", "--seconds", "0.01", "--device", "cpu", "--threads", "1"]


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["measure", *words])
    assert isinstance(stop.value.code, int)
    return stop.value.code


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """Puts a small backbone in the place of those that configs describe; holds what was asked for."""
    asked: list[tuple[str, str | None]] = []

    def load_backbone(config: str, checkpoint: str | None = None) -> SparseSwin:
        asked.append((config, checkpoint))
        if config == "absent.py":
            raise UserError("config not found: absent.py")
        return SparseSwin(embed_dims=8, num_heads=(1, 1, 2, 2)).eval()

    module = types.ModuleType("sparsevit.openmmlab.config")
    module.load_backbone = load_backbone  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sparsevit.openmmlab", types.ModuleType("sparsevit.openmmlab"))
    monkeypatch.setitem(sys.modules, "sparsevit.openmmlab.config", module)
    return asked


def test_a_table_with_the_dense_one_first(loaded, capsys):
    assert run("model.py", "weights.pth", "-s", "0.5", "-s", "0.5/0/0.1,0.1,0.1/0", *SMALL) == 0
    assert loaded == [("model.py", "weights.pth")]
    out = capsys.readouterr().out
    assert "cpu threads=1 float32 batch=1 112x112 eager backbone" in out
    head, *rows = [line for line in out.splitlines() if "×" in line or line.startswith("sparsity")]
    assert all(title in head for title in ("ms", "95 % interval", "speed-up", "windows kept", "samples"))
    assert [row.split()[0] for row in rows] == ["dense", "0.5/0.5/0.5,0.5,0.5/0.5", "0.5/0/0.1,0.1,0.1/0"]
    assert "1.00×" in rows[0]
    assert "100.0%" in rows[0]


def test_json_holds_all_and_nothing_else_is_printed(loaded, capsys):
    assert run("model.py", "-s", "0.5", "-s", "dense", "--json", "--batch", "2", "--dtype", "bfloat16", *SMALL) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["target"] == "cpu threads=1 bfloat16 batch=2 112x112 eager backbone"
    assert found["environment"]["threads"] == "1"
    dense, half = found["latencies"]
    assert dense["sparsity"] == "0/0/0,0,0/0"
    assert (dense["speedup"], dense["windows_kept"]) == (1, 1)
    assert half["sparsity"] == "0.5/0.5/0.5,0.5,0.5/0.5"
    assert half["low_ms"] <= half["median_ms"] <= half["high_ms"]
    assert half["speedup"] == pytest.approx(dense["median_ms"] / half["median_ms"])
    assert half["windows_kept"] == pytest.approx((8 * 2 + 2 * 2 + 1 * 6 + 1 * 2) / (16 * 2 + 4 * 2 + 1 * 6 + 1 * 2))


def test_builtin_is_the_supernet_that_comes_with_the_package(loaded):
    assert run("builtin", *SMALL) == 0
    assert loaded == [("builtin:digits/supernet.py", "builtin:digits")]


def test_windows_kept_count_the_blocks_of_odd_stages():
    backbone = SparseSwin(embed_dims=8, depths=(3,), num_heads=(1,), out_indices=(0,))
    assert kept_share(Sparsity.parse("0,0.5"), backbone, (56, 56)) == pytest.approx((4 * 2 + 2) / (4 * 3))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["absent.py"], "config not found: absent.py"),
        (["m.py", "-s", "0.5/0"], "does not fit a backbone with depths (2, 2, 6, 2)"),
        (["m.py", "-s", "0/0/0.5,0.1,0.1/0"], "pruning ratios decrease inside stage 3"),
        (["m.py", "-s", "much"], "pruning ratio 'much' is not a number"),
        (["m.py", "--size", "big"], "cannot read the image size 'big'"),
        (["m.py", "--size", "8"], "image side 8 is no whole number of at least 32"),
        (["m.py", "--batch", "0"], "batch 0 is no whole number of at least 1"),
        (["m.py", "--dtype", "int8"], "dtype 'int8' is unknown"),
        (["m.py", "--device", "tpu"], "device 'tpu' is unknown"),
        (["m.py", "--device", "cuda:99"], "device cuda:99 is not there"),
        (["m.py", "--device", "cpu", "--engine", "graph"], "engine 'graph' replays CUDA graphs"),
        (["m.py", "--seconds", "0"], "a budget of 0.0 s"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(loaded, capsys, words, line):
    assert run(*words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert line in err


def test_without_the_extra_it_says_which(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "sparsevit.openmmlab", raising=False)
    monkeypatch.delitem(sys.modules, "sparsevit.openmmlab.config", raising=False)
    monkeypatch.setitem(sys.modules, "mmcv", None)
    assert run("m.py", *SMALL) == 2
    assert "pip install 'sparsevit[openmmlab]'" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")  # the packages that a config imports warn
def test_a_real_config(capsys):
    pytest.importorskip("mmdet")
    assert run("builtin:digits/mask_rcnn.py", "-s", "0.6", "--json", *SMALL) == 0
    assert len(json.loads(capsys.readouterr().out)["latencies"]) == 2


def test_help_shows_an_example(capsys):
    assert run("--help") == 0
    assert "Example: sparsevit measure builtin" in capsys.readouterr().out
