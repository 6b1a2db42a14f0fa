"""A built wheel carries all that an installed sparsevit needs, and finds it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

import sparsevit
from sparsevit import assets

ROOT = Path(sparsevit.__file__).parents[1]
SETTINGS = ("configs", "dashboards", "studies")

pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="not in a checkout")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def files(folder: Path) -> set[str]:
    return {
        path.relative_to(ROOT).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_everything_is_in_it(wheel):
    carried = set(ZipFile(wheel).namelist())
    settings = {f"sparsevit/_assets/{name}" for folder in SETTINGS for name in files(ROOT / folder)}
    assert settings
    assert carried >= files(ROOT / "sparsevit") | settings
    assert "sparsevit/py.typed" in carried
    assert any(name.endswith("entry_points.txt") for name in carried)
    assert any(name.endswith("licenses/LICENSE") for name in carried)


def test_nothing_else_is_in_it(wheel):
    tops = {name.split("/")[0] for name in ZipFile(wheel).namelist()}
    assert tops == {"sparsevit", f"sparsevit-{sparsevit.__version__}.dist-info"}


def test_an_installed_sparsevit_finds_its_settings(wheel, tmp_path):
    ZipFile(wheel).extractall(tmp_path)
    package = tmp_path / "sparsevit"
    names = [Path(name) for folder in SETTINGS for name in sorted(files(ROOT / folder))]
    assert names
    for name in names:
        kind, inside = name.parts[0], Path(*name.parts[1:])
        found = assets.asset(kind, inside.as_posix(), package=package)  # type: ignore[arg-type]
        assert found == package / "_assets" / name
        assert found.read_bytes() == (ROOT / name).read_bytes()
