"""Builds mmcv-full from source for the Python and the torch that run this, and prints the wheel's path.

Usage: python tools/mmcv_full.py. The wheel is kept in the user's cache, so the next call takes no time.
Built for the CPU alone, or for CUDA where there is a GPU or FORCE_CUDA=1; CUDA_VISIBLE_DEVICES= hides a GPU.
Needs a C++17 compiler (CXX=… names it), Python's headers and setuptools < 81; for CUDA also nvcc.
PIP_NO_INDEX=1 PIP_FIND_LINKS=folder builds without a network.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

VERSION = "1.7.2"
_PROBE = "#include <Python.h>\n#include <optional>\nint main() { return std::optional<int>(0).value(); }\n"


class CannotBuildError(Exception):
    """What is missing, in one line."""


def main() -> None:
    try:
        print(wheel(os.environ))
    except CannotBuildError as error:
        sys.exit(f"error: {error}")


def wheel(environment: Mapping[str, str]) -> Path:
    """The wheel for this Python and torch, built unless it is in the cache.

    Raises:
        CannotBuildError: if a tool is missing, or the build fails.
    """
    kind = variant(environment)
    folder = cache_folder(environment, kind)
    for kept in folder.glob("*.whl"):
        return kept
    return _build(folder, kind, environment)


def variant(environment: Mapping[str, str]) -> str:
    """`cpu`, or `cuda13.0-sm9.0` where the operators are to run on GPUs as well."""
    import torch

    gpus = range(torch.cuda.device_count())
    if not gpus and environment.get("FORCE_CUDA") != "1":
        return "cpu"
    if torch.version.cuda is None:
        raise CannotBuildError(f"FORCE_CUDA=1, but torch {torch.__version__} is built for the CPU alone")
    capabilities = sorted({"{}.{}".format(*torch.cuda.get_device_capability(gpu)) for gpu in gpus})
    architectures = environment.get("TORCH_CUDA_ARCH_LIST") or ";".join(capabilities)
    if not architectures:
        raise CannotBuildError("FORCE_CUDA=1 without a GPU: say for which one, as TORCH_CUDA_ARCH_LIST=9.0 (an H200)")
    return f"cuda{torch.version.cuda}-sm{architectures}"


def cache_folder(environment: Mapping[str, str], kind: str) -> Path:
    """Where the wheel of this Python, torch and machine is kept."""
    import torch

    user = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    key = f"{VERSION}-{python}-torch{torch.__version__}-{sysconfig.get_platform()}-{kind}"
    return user / "sparsevit" / "mmcv-full" / re.sub(r"[^\w.+-]", "_", key)


def compiler(environment: Mapping[str, str]) -> str:
    """A C++17 compiler that finds Python's headers.

    Raises:
        CannotBuildError: if there is none.
    """
    named = environment.get("CXX")
    candidates = [named] if named else ["c++", "g++", "clang++"]
    found = next((one for one in candidates if shutil.which(shlex.split(one)[0], path=environment.get("PATH"))), None)
    install = "on Debian and Ubuntu: apt install g++"
    if found is None:
        raise CannotBuildError(
            f"building mmcv-full {VERSION} needs a C++17 compiler (g++ 9 or newer), and there is no "
            f"{' or '.join(candidates)}: install one ({install}), or name it with CXX=…"
        )
    headers = sysconfig.get_path("include")
    if not (Path(headers) / "Python.h").is_file():
        package = f"python3.{sys.version_info.minor}-dev"
        raise CannotBuildError(f"Python's headers are not in {headers}: install them (on Debian and Ubuntu {package})")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text(_PROBE)
        command = [*shlex.split(found), "-std=c++17", f"-I{headers}", "-c", str(source), "-o", f"{folder}/probe.o"]
        if subprocess.run(command, capture_output=True, env=dict(environment), check=False).returncode:
            raise CannotBuildError(
                f"{found} compiles no C++17: install g++ 9 or newer ({install}), or name it with CXX=…"
            )
    return found


def check_nvcc(environment: Mapping[str, str]) -> None:
    """See that the CUDA compiler is that of torch.

    Raises:
        CannotBuildError: if it is not there, or of another major version.
    """
    import torch

    home = environment.get("CUDA_HOME") or environment.get("CUDA_PATH")
    nvcc = shutil.which(f"{home}/bin/nvcc" if home else "nvcc", path=environment.get("PATH"))
    wanted = str(torch.version.cuda)
    cure = f"install the CUDA {wanted} toolkit, or build for the CPU alone with CUDA_VISIBLE_DEVICES= FORCE_CUDA=0"
    if nvcc is None:
        raise CannotBuildError(f"building mmcv-full {VERSION} for a GPU needs nvcc, and there is none: {cure}")
    said = subprocess.run(
        [nvcc, "--version"], capture_output=True, text=True, env=dict(environment), check=False
    ).stdout
    release = re.search(r"release (\d+\.\d+)", said)
    if release is None or release[1].split(".")[0] != wanted.split(".")[0]:
        raise CannotBuildError(f"{nvcc} is of CUDA {release[1] if release else 'unknown'}, torch of {wanted}: {cure}")


def _build(folder: Path, kind: str, environment: Mapping[str, str]) -> Path:
    cxx = compiler(environment)
    cuda = kind != "cpu"
    if cuda:
        check_nvcc(environment)
    jobs = environment.get("MAX_JOBS") or str(len(os.sched_getaffinity(0)))
    path = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    settings = {
        **environment,
        "PATH": path,
        "CXX": cxx,
        "CC": environment.get("CC") or cxx,  # nothing in it is C; the linker is called by this name
        "CFLAGS": f"{environment.get('CFLAGS', '')} -g0",  # half the time, a twentieth of the size
        "CXXFLAGS": f"{environment.get('CXXFLAGS', '')} -g0",
        "MAX_JOBS": jobs,
        "MMCV_WITH_OPS": "1",
        "FORCE_CUDA": str(int(cuda)),
        "TORCH_CUDA_ARCH_LIST": kind.partition("-sm")[2],
    }
    if not cuda:
        settings["CUDA_VISIBLE_DEVICES"] = ""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "build.log"
    print(
        f"building mmcv-full {VERSION} for {kind} with {cxx}, {jobs} at a time (5 minutes on two cores); log: {log}",
        file=sys.stderr,
        flush=True,
    )
    start = time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder) as made, log.open("w") as stream:
        build = ["wheel", "--no-build-isolation", "--no-deps", "--no-cache-dir", "--no-binary", "mmcv-full"]
        commands = [[*pip, *build, "-v", "-w", made, f"mmcv-full=={VERSION}"]]
        if shutil.which("ninja", path=path) is None:  # without it one file after the other is compiled
            constraints = Path(__file__).parents[1] / "constraints.txt"
            commands.insert(0, [*pip, "install", "--constraint", str(constraints), "ninja"])
        for command in commands:
            if subprocess.run(command, env=settings, stdout=stream, stderr=stream, check=False).returncode:
                raise CannotBuildError(f"mmcv-full {VERSION} did not build; the reason stands near the end of {log}")
        (built,) = Path(made).glob("*.whl")
        kept = folder / built.name
        os.replace(built, kept)
    print(f"built in {time.monotonic() - start:.0f} s on {platform.machine()}: {kept}", file=sys.stderr, flush=True)
    return kept


if __name__ == "__main__":
    main()
