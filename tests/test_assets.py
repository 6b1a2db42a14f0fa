from __future__ import annotations

from pathlib import Path

import pytest

from sparsevit.assets import asset
from sparsevit.errors import UserError


def put(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A package as a wheel installs it: no checkout around it."""
    put(tmp_path / "site" / "sparsevit" / "_assets" / "studies" / "digits.toml")
    return tmp_path / "site" / "sparsevit"


def test_an_installed_package_finds_its_own_copy(installed: Path) -> None:
    assert asset("studies", "digits.toml", package=installed) == installed / "_assets" / "studies" / "digits.toml"


def test_a_checkout_comes_before_the_package(installed: Path) -> None:
    put(installed.parent / "pyproject.toml")
    edited = put(installed.parent / "studies" / "digits.toml")
    assert asset("studies", "digits.toml", package=installed) == edited


def test_a_folder_beside_an_installed_package_is_not_taken_for_a_checkout(installed: Path) -> None:
    put(installed.parent / "studies" / "digits.toml")
    assert asset("studies", "digits.toml", package=installed).parent.parent.name == "_assets"


def test_files_in_subfolders(installed: Path) -> None:
    path = put(installed / "_assets" / "configs" / "coco" / "mask_rcnn.py")
    assert asset("configs", "coco/mask_rcnn.py", package=installed) == path


@pytest.mark.parametrize("name", ["../studies/digits.toml", "nothing.toml", "/etc/passwd", "", "."])
def test_other_names_are_refused_with_those_there_are(installed: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"there are: digits\.toml") as error:
        asset("studies", name, package=installed)
    assert "\n" not in str(error.value)


def test_the_report_page_is_found_from_here() -> None:
    assert asset("dashboards", "report.toml").read_text().startswith("# The page")
