"""Are the packages there that a search needs, in versions that work, and do they import?

Which versions are right stands in the package's own metadata, hence in pyproject.toml alone.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path

from packaging.requirements import Requirement

from sparsevit.doctor.finding import Finding, State

Installed = Callable[[str], str | None]
"""The version of a package, None where it is not installed."""

EXTRA = "openmmlab"
MMCV = "1.7.2"
"""The one release that works: older ones break on today's yapf, and 2.x is another library."""
OPENCV = "opencv-python-headless"
"""The OpenCV that runs without a display's libraries."""
PYTHONS = ((3, 11), (3, 12))
_MMCV = ("mmcv", "mmcv-full")


def installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def requirements() -> list[Requirement]:
    """What a search with the default evaluator needs, mmcv aside; empty where sparsevit is not installed."""
    try:
        lines = metadata("sparsevit").get_all("Requires-Dist") or []
    except PackageNotFoundError:
        return []
    wanted = [Requirement(line) for line in lines]
    return [
        one
        for one in wanted
        if one.name not in _MMCV and (one.marker is None or any(one.marker.evaluate({"extra": e}) for e in ("", EXTRA)))
    ]


def python(running: tuple[int, int, int] = sys.version_info[:3]) -> Finding:
    name = ".".join(map(str, running))
    if running[:2] in PYTHONS:
        return Finding("python", State.OK, name)
    return Finding("python", State.WRONG, f"{name}; 3.11 or 3.12 is needed", "make clean search PYTHON=python3.12")


def versions(wanted: Sequence[Requirement], installed: Installed = installed_version) -> list[Finding]:
    """One finding for every package wanted."""
    if not wanted:
        detail = "runs from its folder without being installed, so the versions of other packages are not judged"
        return [Finding("sparsevit", State.WARNING, detail, install("--editable", "."))]
    return [_version(one, installed(one.name)) for one in wanted]


def _version(wanted: Requirement, found: str | None) -> Finding:
    if found is not None and wanted.specifier.contains(found, prereleases=True):
        return Finding(wanted.name, State.OK, found)
    detail = f"{found or 'not installed'}; {wanted.specifier} is needed"
    return Finding(wanted.name, State.WRONG, detail, install(f"{wanted.name}{wanted.specifier}"))


def mmcv(installed: Installed = installed_version) -> Finding:
    """mmcv or mmcv-full, which are one package under two names: exactly one of them."""
    plain, full = (installed(name) for name in _MMCV)
    # Its own set-up needs an older setuptools, and asks for the OpenCV that it finds.
    build = f"{install('setuptools<81', 'wheel', OPENCV)} && {install('--no-build-isolation', f'mmcv=={MMCV}')}"
    if plain and full:
        detail = f"mmcv {plain} and mmcv-full {full} overwrite each other"
        return Finding("mmcv", State.WRONG, detail, f"{_pip()} uninstall -y mmcv mmcv-full && {build}")
    name, found = ("mmcv-full", full) if full else ("mmcv", plain)
    if found == MMCV:
        return Finding(name, State.OK, found)
    if found:
        build = f"{_pip()} uninstall -y {name} && {build}"
    return Finding(name, State.WRONG, f"{found or 'not installed'}; =={MMCV} is needed", build)


def imports(load: Callable[[str], object] = import_module) -> list[Finding]:
    """The first package that is there but does not import; where all do, the operators that they use."""
    cures = {
        "cv2": f"{_pip()} uninstall -y opencv-python && {install('--force-reinstall', '--no-deps', OPENCV)}",
        "torchvision": install("--force-reinstall", "torch==2.11.0", "torchvision==0.26.0"),
        "sparsevit.openmmlab": install("--force-reinstall", "--no-deps", "mmdet==2.28.2"),
    }
    for name, cure in cures.items():
        try:
            load(name)
        except Exception as error:  # whatever a broken package raises is what is to be shown
            reason = " ".join(str(error).split())
            return [Finding(f"import {name}", State.WRONG, f"{type(error).__name__}: {reason}", cure)]
    return [operators()]


def operators() -> Finding:
    """Where mmcv's operators come from; a warning where there is a GPU that they do not run on."""
    import torch

    from sparsevit.openmmlab.ops import ops_in_use

    used = ops_in_use()
    if used.on_gpu or not torch.cuda.is_available():
        return Finding("operators", State.OK, used.source)
    build = install("--no-build-isolation", "--no-cache-dir", "--force-reinstall", "--no-deps", f"mmcv-full=={MMCV}")
    detail = f"{used.source}, so that detectors fail on this GPU"
    return Finding("operators", State.WARNING, detail, f"FORCE_CUDA=1 MMCV_WITH_OPS=1 {build}")


def _pip() -> str:
    """pip of the Python that runs, shortened where it lies below the current folder."""
    path = Path(sys.executable)
    here = Path.cwd()
    return f"{shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))} -m pip"


def install(*words: str) -> str:
    """The command that installs `words` into the Python that runs."""
    return f"{_pip()} install {shlex.join(words)}"
