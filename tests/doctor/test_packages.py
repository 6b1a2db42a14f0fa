"""Wrong versions, missing packages and broken imports are found, and their cures are commands that can be typed."""

from __future__ import annotations

import shlex
import sys

import pytest
from packaging.requirements import Requirement

from sparsevit.doctor import packages
from sparsevit.doctor.finding import State

WANTED = [Requirement("torch>=2.8,<3"), Requirement("mmdet==2.28.2")]


def test_versions_in_range_are_fine_local_and_early_builds_too():
    found = packages.versions(WANTED, {"torch": "2.11.0+cpu", "mmdet": "2.28.2"}.get)
    assert [(one.name, one.state, one.detail) for one in found] == [
        ("torch", State.OK, "2.11.0+cpu"),
        ("mmdet", State.OK, "2.28.2"),
    ]
    assert packages.versions(WANTED[:1], {"torch": "2.12.0.dev20260101"}.get)[0].state is State.OK


@pytest.mark.parametrize(("version", "said"), [(None, "not installed"), ("3.0.0", "3.0.0")])
def test_a_wrong_version_names_the_right_one_and_installs_it(version, said):
    found = packages.versions(WANTED[1:], {"mmdet": version}.get)[0]
    assert found.state is State.WRONG
    assert found.detail == f"{said}; ==2.28.2 is needed"
    assert shlex.split(found.cure)[-3:] == ["pip", "install", "mmdet==2.28.2"]


def test_a_cure_survives_the_shell():
    cure = packages.versions(WANTED[:1], {}.get)[0].cure
    assert Requirement(shlex.split(cure)[-1]).specifier == WANTED[0].specifier


def test_without_an_installed_sparsevit_nothing_is_claimed_about_versions():
    (found,) = packages.versions([], {}.get)
    assert (found.name, found.state) == ("sparsevit", State.WARNING)


@pytest.mark.parametrize(
    ("running", "state"), [((3, 10, 4), "wrong"), ((3, 11, 0), "ok"), ((3, 12, 9), "ok"), ((3, 13, 0), "wrong")]
)
def test_python(running, state):
    assert packages.python(running).state == state


@pytest.mark.parametrize("name", ["mmcv", "mmcv-full"])
def test_either_mmcv_is_fine(name):
    found = packages.mmcv({name: "1.7.2"}.get)
    assert (found.name, found.state, found.cure) == (name, State.OK, "")


@pytest.mark.parametrize(
    ("installed", "removed"),
    [({}, None), ({"mmcv": "2.2.0"}, "mmcv"), ({"mmcv-full": "1.6.0"}, "mmcv-full")],
)
def test_no_mmcv_or_another_is_replaced(installed, removed):
    found = packages.mmcv(installed.get)
    assert found.state is State.WRONG
    assert found.cure.endswith("mmcv==1.7.2")
    assert (f"uninstall -y {removed} &&" in found.cure) is (removed is not None)


def test_both_mmcv_are_one_too_many():
    found = packages.mmcv({"mmcv": "1.7.2", "mmcv-full": "1.7.2"}.get)
    assert found.state is State.WRONG
    assert "uninstall -y mmcv mmcv-full &&" in found.cure


def test_the_first_broken_import_is_shown_with_its_reason():
    def load(name: str) -> None:
        if name == "cv2":
            raise ImportError("libGL.so.1: cannot open shared object file:\nNo such file or directory")
        raise AssertionError("nothing else is tried")

    (found,) = packages.imports(load)
    assert found.state is State.WRONG
    assert found.detail == "ImportError: libGL.so.1: cannot open shared object file: No such file or directory"
    assert found.cure.endswith("opencv-python-headless")


@pytest.mark.parametrize(
    ("on_gpu", "gpu", "state"),
    [(True, True, "ok"), (True, False, "ok"), (False, False, "ok"), (False, True, "warning")],
)
def test_operators_that_do_not_run_on_the_gpu_that_is_there(monkeypatch, on_gpu, gpu, state):
    pytest.importorskip("mmdet")
    import torch

    from sparsevit.openmmlab import ops

    monkeypatch.setattr(ops, "ops_in_use", lambda: ops.Operators("compiled somehow", on_gpu))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    found = packages.operators()
    assert (found.name, found.state) == ("operators", state)
    assert found.detail.startswith("compiled somehow")
    assert ("FORCE_CUDA=1" in found.cure) is (state == "warning")


def test_pip_is_that_of_the_running_python(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "my env" / "bin" / "python"))
    monkeypatch.chdir(tmp_path)
    assert packages.install("torch") == "'my env/bin/python' -m pip install torch"
    monkeypatch.chdir("/")
    assert shlex.split(packages.install("torch"))[0] == str(tmp_path / "my env" / "bin" / "python").lstrip("/")
