#!/usr/bin/env bash
# Makes a second environment from a first one: the same packages, but mmcv-full, compiled here, in the place of mmcv.
# Usage: tools/set_up_mmcv_full.sh FIRST SECOND. Needs a C++ compiler where tools/mmcv_full.py has no wheel yet.
set -euo pipefail
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."

first=${1:?usage: tools/set_up_mmcv_full.sh FIRST SECOND}
second=${2:?usage: tools/set_up_mmcv_full.sh FIRST SECOND}
stamp=$second/.stamp # written last: the folder for which this environment is complete
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_REQUIRE_VIRTUALENV=0

fail() {
    echo "error: $1" >&2
    exit 1
}

packages() {
    "$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
}

if [[ -e $second && ! -e $second/pyvenv.cfg && -n $(find "$second" -type f -print -quit) ]]; then
    fail "$second exists and is no virtual environment: move it away"
fi
wheel=$("$first/bin/python" tools/mmcv_full.py)

start=$SECONDS
rm -f "$stamp"
"$first/bin/python" -m venv --clear --without-pip "$second"
# Links cost neither time nor space, and pip replaces files instead of writing into them. Not across file systems.
from=$(packages "$first")/. to=$(packages "$second")/
cp --archive --link "$from" "$to" 2>/dev/null || cp --archive --remove-destination "$from" "$to"
pip=("$second/bin/python" -m pip)
"${pip[@]}" uninstall -qq --yes mmcv
"${pip[@]}" install -qq --no-deps "$wheel"
"${pip[@]}" install -qq --no-deps --no-build-isolation --editable . # its command, which was not copied
"$second/bin/python" -c 'import torch, mmcv._ext' 2>/dev/null || fail "${wheel##*/} does not load; delete $wheel to build it anew"
echo "$PWD" >"$stamp"
printf 'environment with %s: %d s\n' "${wheel##*/}" $((SECONDS - start))
