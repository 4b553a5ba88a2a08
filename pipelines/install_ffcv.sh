#!/usr/bin/env bash
# Builds FFCV into the environment of the Python given: pipelines/install_ffcv.sh .venv/bin/python [--required]
#
# FFCV links only OpenCV's core and imgproc and libturbojpeg, but asks for all of OpenCV: 690 MB of packages where these
# take 49. So the header and the pkg-config file that its build looks for are written here, and its dependencies are
# installed by name, with the OpenCV wheel that needs no display.
#
# Where FFCV cannot be had one line says why and the exit code is 0, since all else works without it; with --required,
# or under CI (CI=true), it is 1.
set -uo pipefail

PYTHON=${1:?usage: $0 PYTHON [--required]}
REQUIRED=${2:-}
[[ ${CI:-} == true ]] && REQUIRED=--required
VERSION=1.0.2
PACKAGES=(libopencv-imgproc-dev libturbojpeg0-dev pkg-config g++)
DEPENDENCIES=(opencv-python-headless pytorch-pfn-extras terminaltables fastargs assertpy psutil tqdm setuptools wheel)
CONSTRAINTS=$(dirname "$0")/../constraints.txt
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT

give_up() {
    echo "ffcv is not installed, so --pipeline ffcv is not there and native takes its place: $1. To try again: make ffcv" >&2
    [[ $REQUIRED == --required ]] && exit 1
    exit 0
}

installed() {
    NUMBA_THREADING_LAYER=omp "$PYTHON" -c "
import importlib.metadata, ffcv.loader
version = importlib.metadata.version('ffcv')
assert version == '$VERSION', f'version {version} is installed, not $VERSION'" >"$WORK/log" 2>&1
}

have_headers() {
    command -v g++ >/dev/null && command -v pkg-config >/dev/null && pkg-config --exists libturbojpeg || return 1
    for OPENCV in /usr/include/opencv4 /usr/local/include/opencv4; do
        [[ -f $OPENCV/opencv2/imgproc.hpp ]] && return 0
    done
    return 1
}

install_headers() {
    local command=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300)
    command -v apt-get >/dev/null || give_up "it needs the headers of libturbojpeg and OpenCV, see fastvicreg doctor"
    if [[ $(id -u) != 0 ]]; then
        sudo -n true 2>/dev/null || give_up "it needs root once: sudo apt-get install ${PACKAGES[*]}"
        command=(sudo -n "${command[@]}")
    fi
    { "${command[@]}" update && "${command[@]}" install -y --no-install-recommends "${PACKAGES[@]}"; } >"$WORK/log" 2>&1 ||
        give_up "apt-get install ${PACKAGES[*]} failed with: $(tail -n 1 "$WORK/log")"
    have_headers || give_up "${PACKAGES[*]} brought no usable headers"
}

pip_install() {
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -c "$CONSTRAINTS" "$@" >"$WORK/log" 2>&1
}

installed && exit 0
have_headers || install_headers
mkdir -p "$WORK/include/opencv2"
printf '#include <opencv2/core.hpp>\n#include <opencv2/imgproc.hpp>\n' >"$WORK/include/opencv2/opencv.hpp"
cat >"$WORK/opencv4.pc" <<END
Name: OpenCV
Description: core and imgproc, all that FFCV links
Version: 4
Cflags: -I$WORK/include -I$OPENCV
Libs: -lopencv_imgproc -lopencv_core
END
pip_install "${DEPENDENCIES[@]}" || give_up "pip cannot install its dependencies: $(tail -n 1 "$WORK/log")"
export PKG_CONFIG_PATH=$WORK${PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH}
pip_install --no-deps --no-build-isolation "ffcv==$VERSION" ||
    give_up "its build failed with: $(grep -m 1 -i error "$WORK/log" || tail -n 1 "$WORK/log")"
installed || give_up "it was built but does not import: $(tail -n 1 "$WORK/log")"
echo "ffcv $VERSION is installed"
