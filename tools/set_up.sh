#!/usr/bin/env bash
# Makes a virtual environment with the pinned set and this checkout in it. Needs Python 3.11 or 3.12; no compiler, no GPU.
# Usage: tools/set_up.sh VENV. PYTHON=… names the interpreter to start from.
# Interrupted or moved, the environment is made anew; after a change of pyproject.toml or constraints.txt it is updated.
set -euo pipefail
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."

venv=${1:?usage: tools/set_up.sh VENV}
stamp=$venv/.stamp # written last: the folder for which this environment is complete
extras=openmmlab,dashboard,deploy,postgres,ray,dev
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_REQUIRE_VIRTUALENV=0

fail() {
    [[ ! -t 1 ]] || echo # below the line of the running step
    echo "error: $1" >&2
    exit 1
}

# A version manager's shim may stand on PATH for a Python that is not there, so every candidate is run.
find_python() {
    local candidate bare=
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null; then
            if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
                echo "$candidate"
                return
            fi
            bare=$candidate
        fi
    done
    [[ -z $bare ]] || fail "$bare cannot make environments: install its venv package (on Debian and Ubuntu python3-venv)"
    fail "no Python 3.11 or 3.12 runs as python3.11, python3.12 or python3: install one, or type make PYTHON=/path/to/it"
}

# One line per step, with its time; on a terminal the time counts while the step runs.
step() {
    local title=$1 start=$SECONDS ticker=
    shift
    if [[ -t 1 ]]; then
        while :; do printf '\r%s … %d s' "$title" $((SECONDS - start)); sleep 1; done &
        ticker=$!
        trap "kill $ticker 2>/dev/null || true" EXIT
        "$@"
        kill $ticker
        wait $ticker 2>/dev/null || true
        trap - EXIT
        printf '\r%s: %d s  \n' "$title" $((SECONDS - start))
    else
        "$@"
        printf '%s: %d s\n' "$title" $((SECONDS - start))
    fi
}

install() {
    "$venv/bin/python" -m pip install -qq --constraint constraints.txt "$@" ||
        fail "set-up stopped for the reason above; type the same command again to repair it"
}

if [[ -e $venv && ! -e $venv/pyvenv.cfg && -n $(find "$venv" -type f -print -quit) ]]; then
    fail "$venv exists and is no virtual environment: move it away, or type make VENV=another/folder"
fi

if [[ ! -e $stamp || $(<"$stamp") != "$PWD" ]]; then
    python=$(find_python)
    step "environment with $("$python" -V)" "$python" -m venv --clear "$venv"
fi
rm -f "$stamp"

step "pip" install pip
step "build tools" install setuptools wheel hatchling editables
# mmcv's own set-up needs setuptools < 81, and asks for the OpenCV it finds: the headless one runs without a display's
# libraries. A wheel from the cache may have been built beside another OpenCV, hence built anew, in seconds.
step "OpenCV" install opencv-python-headless addict numpy packaging pillow pyyaml yapf
step "mmcv" install --no-cache-dir --no-build-isolation mmcv
step "PyTorch (2.5 GB to fetch unless cached)" install torch torchvision
step "everything else" install --no-build-isolation --editable ".[$extras]"
echo "$PWD" >"$stamp"
