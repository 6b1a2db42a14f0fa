"""Building mmcv-full: what is missing is one line, and a wheel that was built once is taken again."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import sparsevit

ROOT = Path(sparsevit.__file__).parents[1]
SCRIPT = ROOT / "tools" / "mmcv_full.py"

pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="not in a checkout")


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mmcv_full", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def program(folder: Path, name: str, says: str, code: int = 0) -> str:
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{says}'\nexit {code}\n")
    path.chmod(0o755)
    return str(path)


def refusal(tool: ModuleType, environment: dict[str, str], kind: str) -> str:
    with pytest.raises(tool.CannotBuildError) as error:
        tool._build(Path(environment["XDG_CACHE_HOME"]), kind, environment)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """An environment in which no program is found."""
    (tmp_path / "bin").mkdir()
    return {"PATH": str(tmp_path / "bin"), "XDG_CACHE_HOME": str(tmp_path)}


def test_no_compiler(tool, bare):
    said = refusal(tool, bare, "cpu")
    assert said.startswith(
        "building mmcv-full 1.7.2 needs a C++17 compiler (g++ 9 or newer), and there is no c++ or g++"
    )
    assert "apt install g++" in said
    assert "there is no clang++-99" in refusal(tool, {**bare, "CXX": "clang++-99"}, "cpu")


def test_a_compiler_that_is_too_old(tool, bare):
    program(Path(bare["PATH"]), "c++", "error: unrecognised option -std=c++17", code=1)
    assert refusal(tool, bare, "cpu").startswith("c++ compiles no C++17: install g++ 9 or newer")


@pytest.mark.parametrize(
    ("release", "said"),
    [(None, "needs nvcc, and there is none"), ("11.8", "is of CUDA 11.8, torch of 13.0"), ("?", "is of CUDA unknown")],
)
def test_no_nvcc_or_another(tool, bare, monkeypatch, release, said):
    import torch

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(tool, "compiler", lambda environment: "c++")
    if release:
        program(Path(bare["PATH"]), "nvcc", f"Cuda compilation tools, release {release}, V")
    line = refusal(tool, bare, "cuda13.0-sm9.0")
    assert said in line
    assert "install the CUDA 13.0 toolkit, or build for the CPU alone" in line


def test_a_failing_build_names_its_log_and_leaves_no_wheel(tool, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "compiler", lambda environment: "c++")
    monkeypatch.setattr(sys, "executable", program(tmp_path, "python", "pkg_resources is not there", code=1))
    said = refusal(tool, {"PATH": os.environ["PATH"], "XDG_CACHE_HOME": str(tmp_path / "cache")}, "cpu")
    log = tmp_path / "cache" / "build.log"
    assert str(log) in said
    assert "pkg_resources is not there" in log.read_text()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["build.log"]


@pytest.mark.parametrize(
    ("gpus", "environment", "kind"),
    [
        (0, {}, "cpu"),
        (0, {"FORCE_CUDA": "0", "TORCH_CUDA_ARCH_LIST": "9.0"}, "cpu"),
        (0, {"FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "9.0"}, "cuda13.0-sm9.0"),
        (2, {}, "cuda13.0-sm8.9"),
        (1, {"TORCH_CUDA_ARCH_LIST": "9.0"}, "cuda13.0-sm9.0"),
    ],
)
def test_what_is_built(tool, monkeypatch, gpus, environment, kind):
    import torch

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda gpu: (8, 9))
    assert tool.variant(environment) == kind


def test_cuda_that_cannot_be_built(tool, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(tool.CannotBuildError, match=r"TORCH_CUDA_ARCH_LIST=9\.0"):
        tool.variant({"FORCE_CUDA": "1"})
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(tool.CannotBuildError, match="is built for the CPU alone"):
        tool.variant({"FORCE_CUDA": "1"})


def test_a_wheel_is_kept_for_each_python_torch_and_device(tool, tmp_path, monkeypatch):
    import torch

    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    folders = {tool.cache_folder(environment, kind) for kind in ("cpu", "cuda13.0-sm9.0", "cuda13.0-sm8.0;9.0+PTX")}
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    folders.add(tool.cache_folder(environment, "cpu"))
    assert len(folders) == 4
    assert all(folder.is_relative_to(tmp_path) and ";" not in folder.name for folder in folders)


def test_a_wheel_that_is_there_is_taken_without_a_compiler(tool, bare, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    kept = tool.cache_folder(bare, "cpu") / "mmcv_full-1.7.2-cp311-cp311-linux_x86_64.whl"
    kept.parent.mkdir(parents=True)
    kept.touch()
    assert tool.wheel(bare) == kept


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_the_compiler_that_is_there_is_found(tool):
    assert shutil.which(tool.compiler(os.environ).split()[0])


def test_the_command_says_one_line_and_fails(bare):
    environment = {**bare, "CUDA_VISIBLE_DEVICES": "", "FORCE_CUDA": "0"}
    done = subprocess.run([sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: building mmcv-full 1.7.2 needs a C++17 compiler")
    assert done.stderr.count("\n") == 1
