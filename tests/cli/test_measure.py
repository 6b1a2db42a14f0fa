"""`sparsevit measure` as the user sees it; timing itself is tested in tests/latency."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest

from sparsevit.assets import asset
from sparsevit.cli.app import main
from sparsevit.errors import UserError
from sparsevit.latency.comparison import kept_share
from sparsevit.latency.memory import shortage
from sparsevit.latency.results import Survey, Timing
from sparsevit.latency.target import Target
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
    assert all(title in head for title in ("ms", "95 % interval", "speed-up", "windows kept", "peak memory", "samples"))
    assert [row.split()[0] for row in rows] == ["dense", "0.5/0.5/0.5,0.5,0.5/0.5", "0.5/0/0.1,0.1,0.1/0"]
    assert "1.00×" in rows[0]
    assert "100.0%" in rows[0]


def test_json_holds_all_and_nothing_else_is_printed(loaded, capsys):
    assert run("model.py", "-s", "0.5", "-s", "dense", "--json", "--batch", "2", "--dtype", "bfloat16", *SMALL) == 0
    (found,) = json.loads(capsys.readouterr().out)["measurements"]
    assert found["target"] == "cpu threads=1 bfloat16 batch=2 112x112 eager backbone"
    assert found["environment"]["threads"] == "1"
    dense, half = found["latencies"]
    assert dense["sparsity"] == "0/0/0,0,0/0"
    assert (dense["speedup"], dense["windows_kept"]) == (1, 1)
    assert half["sparsity"] == "0.5/0.5/0.5,0.5,0.5/0.5"
    assert half["low_ms"] <= half["ms"] <= half["high_ms"]
    assert half["speedup"] == pytest.approx(dense["ms"] / half["ms"])
    assert half["peak_memory_bytes"] is None
    assert half["windows_kept"] == pytest.approx((8 * 2 + 2 * 2 + 1 * 6 + 1 * 2) / (16 * 2 + 4 * 2 + 1 * 6 + 1 * 2))


def test_sizes_batches_dtypes_and_engines_are_combined(loaded, capsys):
    words = ["--size", "112", "--size", "64x96", "--batch", "1", "--batch", "2", "--dtype", "float32", "--json"]
    assert run("model.py", "-s", "0.5", *words, *SMALL[2:]) == 0
    out, err = capsys.readouterr()
    assert [one["target"] for one in json.loads(out)["measurements"]] == [
        f"cpu threads=1 float32 batch={batch} {size} eager backbone"
        for size in ("112x112", "64x96")
        for batch in (1, 2)
    ]
    assert "measuring cpu threads=1" in err


def test_what_is_slower_than_dense_is_said_plainly(loaded, capsys, monkeypatch):
    def survey(subject, target, sparsities, **_):
        timings = [Timing(ms, ms * 0.99, ms * 1.01, 9) for ms in (10.0, 12.0, 10.05, 5.0)]
        return Survey(tuple(timings), (1 << 20, None, 3 << 20, 5 << 30), ("the machine is tired",))

    monkeypatch.setattr("sparsevit.latency.comparison.survey", survey)
    assert run("m.py", "-s", "0.1", "-s", "0.2", "-s", "0.6", *SMALL) == 0
    out = capsys.readouterr().out
    assert "slower than dense on this target: 0.1/0.1/0.1,0.1,0.1/0.1, by 20.0%" in out
    assert "not measurably faster than dense on this target: 0.2/0.2/0.2,0.2,0.2/0.2" in out
    assert "0.6/0.6/0.6,0.6,0.6/0.6" not in out.partition("slower")[2]
    assert "note: the machine is tired" in out
    assert "5,120 MiB" in out


def test_a_target_that_does_not_fit_is_left_out_beside_others_and_refused_alone(loaded, capsys, monkeypatch):
    def survey(subject, target, sparsities, **_):
        if target.batch > 8:
            raise shortage(target, Target("cpu", 1, batch=8))
        return Survey((Timing(2.0, 1.9, 2.1, 9),) * len(sparsities), (None,) * len(sparsities), ())

    monkeypatch.setattr("sparsevit.latency.comparison.survey", survey)
    line = "no memory left on cpu for batch 64 at 112x112: batch 8 at 448x448 fits"
    assert run("m.py", "--batch", "64", "--batch", "1", *SMALL) == 0
    assert f"batch=64 112x112 eager backbone: {line}" in capsys.readouterr().out
    assert run("m.py", "--batch", "64", "--batch", "1", "--json", *SMALL) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["reason"] for one in found["skipped"]] == [line]
    assert len(found["measurements"]) == 1
    assert run("m.py", "--batch", "64", *SMALL) == 2
    assert capsys.readouterr().err.strip() == f"error: {line}"


def test_the_papers_protocol_states_its_counts(loaded, capsys, monkeypatch):
    monkeypatch.setattr("sparsevit.latency.paper.WARM_UP", 4)
    monkeypatch.setattr("sparsevit.latency.paper.TIMED", 8)
    monkeypatch.setattr("sparsevit.latency.paper.STEPS", 2)
    assert run("m.py", "-s", "0.5", "--protocol", "paper", *SMALL) == 0
    out = capsys.readouterr().out
    assert "cpu threads=1 float32 batch=4 112x112 eager backbone" in out
    assert "mean of the middle half of 500 passes after 500 to warm up, as in the paper" in out


def test_the_plot_is_a_page_that_needs_no_other_file(loaded, capsys, tmp_path):
    page = tmp_path / "new" / "ms.html"
    assert run("m.py", "-s", "0.5", "--batch", "1", "--batch", "2", "--plot", str(page), *SMALL) == 0
    text = page.read_text()
    assert "0.5\\u002f0.5" in text or "0.5/0.5/0.5,0.5,0.5/0.5" in text
    assert "batch=2 112x112 eager backbone" in text
    assert 'src="http' not in text
    assert [one.name for one in page.parent.iterdir()] == ["ms.html"]


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
        (["m.py", "--scope", "head"], "scope 'head' is unknown: write backbone or detector"),
        (["m.py", "--protocol", "fast"], "protocol 'fast' is unknown: write median or paper"),
        (["m.py", "--protocol", "paper", "--batch", "1"], "the paper's protocol has batch 4, not 1"),
        (["m.py", "--precision", "0"], "a precision of 0.0 is none"),
        (["m.py", "--plot", "ms.png"], "name it such as ms.html, not ms.png"),
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
    monkeypatch.delattr("sparsevit.openmmlab", raising=False)  # else the package keeps what is imported here
    monkeypatch.delitem(sys.modules, "sparsevit.openmmlab", raising=False)
    monkeypatch.delitem(sys.modules, "sparsevit.openmmlab.config", raising=False)
    monkeypatch.setitem(sys.modules, "mmcv", None)
    assert run("m.py", *SMALL) == 2
    assert "pip install 'sparsevit[openmmlab]'" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")  # the packages that a config imports warn
def test_a_whole_detector_on_its_own_test_data(capsys, tmp_path, monkeypatch):
    pytest.importorskip("mmdet")
    monkeypatch.chdir(tmp_path)
    Path("tiny.py").write_text(
        f"_base_ = {str(asset('configs', 'digits/mask_rcnn.py'))!r}\n"
        "data = dict(test=dict(images=2, size=(128, 128)))\n"
    )
    assert run("tiny.py", "-s", "0.6", "--scope", "detector", "--json", *SMALL) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["measurements"][0]["target"].endswith("112x112 eager detector")
    assert "objects found in 1 image(s)" in found["measurements"][0]["notes"][0]
    assert found["notes"][0].startswith("the detector was given images of ")
    assert "without a checkpoint" in found["notes"][1]


@pytest.mark.filterwarnings("ignore")  # the packages that a config imports warn
def test_a_real_config(capsys):
    pytest.importorskip("mmdet")
    assert run("builtin:digits/mask_rcnn.py", "-s", "0.6", "--json", *SMALL) == 0
    (found,) = json.loads(capsys.readouterr().out)["measurements"]
    assert len(found["latencies"]) == 2


def test_help_shows_an_example(capsys):
    assert run("--help") == 0
    assert "Example: sparsevit measure builtin" in capsys.readouterr().out
