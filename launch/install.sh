#!/usr/bin/env bash
# Install the package with extras in .venv (made if absent); quick when nothing has changed. PYTHON names the interpreter.
# Usage: bash launch/install.sh [EXTRAS]      EXTRAS as for pip, e.g. train,data,sim (the default)
set -euo pipefail
cd "$(dirname "$0")/.."
extras=${1:-train,data,sim}
python=${PYTHON:-python3}
die() { echo "install: $*" >&2; exit 2; }

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
  die "needs Python 3.11 or newer, found '$("$python" -V 2>&1 || true)'; name another one: PYTHON=python3.12 bash launch/install.sh"
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
  if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    "$python" -m venv .venv
  elif "$python" -m pip --version >/dev/null 2>&1; then # Debian with python3-pip but without python3-venv
    "$python" -m venv --without-pip .venv && "$python" -m pip --python .venv/bin/python install -q pip
  else
    die "'$python' can't make virtual environments (no ensurepip, no pip): as root, apt-get install python3-venv; or name another Python with PYTHON="
  fi
fi

stamp=$(cat pyproject.toml launch/constraints.txt <(echo "$extras") <(.venv/bin/python -V) | sha256sum | cut -d' ' -f1)
if grep -qsx "$stamp" .venv/wam-video-installed; then
  echo "install: wam-video[$extras] is up to date in .venv"
  exit 0
fi
pip() { .venv/bin/python -m pip --disable-pip-version-check install --quiet --constraint launch/constraints.txt "$@"; }
echo "install: torch, then wam-video[$extras], into .venv (some minutes the first time)"
# First and alone: a later resolver run then keeps it, instead of fetching gigabytes of CUDA packages for a CPU machine.
pip torch==2.13.0
pip --editable ".[$extras]"
# gym-pusht pulls the OpenCV that links the GL libraries of a desktop; a bare machine gets the one without a window system.
if [ -d "$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/cv2" ] && ! .venv/bin/python -c 'import cv2' 2>/dev/null; then
  pip --force-reinstall --no-deps opencv-python-headless
fi
echo "$stamp" >>.venv/wam-video-installed
