"""Set-up says in one line what is missing and harms nothing; the pinned set fits what the package asks for."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import sparsevit

ROOT = Path(sparsevit.__file__).parents[1]
NEEDED = ("bash", "dirname", "env", "find", "rm")

pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="not in a checkout")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the set-up script, and `bin/` with a PATH's worth of programs but no Python."""
    (tmp_path / "bin").mkdir()
    for name in NEEDED:
        program = shutil.which(name)
        assert program
        (tmp_path / "bin" / name).symlink_to(program)
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    return tmp_path


def add_python(checkout: Path, name: str, *, version: str, environments: bool = True) -> None:
    """A program that answers like a Python of that version; a version of `""` is a shim with nothing behind it."""
    minor = version.partition(".")[2]
    script = f"""#!/bin/bash
[[ -n "{version}" ]] || {{ echo "{name}: command not found" >&2; exit 127; }}
case "$*" in
    *version_info*) [[ "$*" == *"(3, {minor})"* ]] ;;
    *ensurepip*) {str(environments).lower()} ;;
    *-V*) echo "Python {version}.0" ;;
    *) echo "$0 was taken" >&2; exit 3 ;;
esac
"""
    path = checkout / "bin" / name
    path.write_text(script)
    path.chmod(0o755)


def set_up(checkout: Path) -> tuple[int, str]:
    environment = {"PATH": str(checkout / "bin")}
    command = [str(checkout / "tools" / "set_up.sh"), ".venv"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == ""
    return done.returncode, done.stderr


def test_no_python_is_one_line(checkout):
    add_python(checkout, "python3.11", version="")
    add_python(checkout, "python3", version="3.13")
    code, said = set_up(checkout)
    assert code == 1
    assert said.count("\n") == 1
    assert said.startswith("error: no Python 3.11 or 3.12 runs as")
    assert not (checkout / ".venv").exists()


def test_a_dead_shim_and_a_python_without_environments_are_passed_over(checkout):
    add_python(checkout, "python3.11", version="", environments=False)
    add_python(checkout, "python3.12", version="3.12", environments=False)
    add_python(checkout, "python3", version="3.12")
    assert set_up(checkout)[1] == f"{checkout / 'bin' / 'python3'} was taken\n"


def test_a_python_without_environments_is_named(checkout):
    add_python(checkout, "python3.12", version="3.12", environments=False)
    code, said = set_up(checkout)
    assert code == 1
    assert said.count("\n") == 1
    assert said.startswith("error: python3.12 cannot make environments")


def test_a_folder_that_is_no_environment_is_left_alone(checkout):
    add_python(checkout, "python3.11", version="3.11")
    notes = checkout / ".venv" / "deep" / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("precious")
    code, said = set_up(checkout)
    assert code == 1
    assert said.startswith("error: .venv exists and is no virtual environment")
    assert notes.read_text() == "precious"


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    return [Requirement(line) for line in lines]


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


# mmcv-full is mmcv under another name, and built where it is used.
@pytest.mark.parametrize("wanted", [one for one in requirements() if one.name != "mmcv-full"], ids=lambda one: one.name)
def test_every_requirement_is_pinned_within_its_range(wanted, pins):
    assert wanted.specifier.contains(pins[canonicalize_name(wanted.name)])
