#!/usr/bin/env bash
# Install and run the whole CPU suite. Usage: bash launch/test.sh [PYTEST ARGUMENTS]
# `-m long` runs the tests that take minutes. WORKERS (default: cores, at most 4) processes share the tests; real recordings are used where WAM_VIDEO_REAL_DATA or ../shared/data has them.
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/install.sh train,data,sim,serve,scale,speed,dev
cores=$(getconf _NPROCESSORS_ONLN)
workers=${WORKERS:-$((cores < 4 ? cores : 4))}
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false SDL_VIDEODRIVER=dummy
exec .venv/bin/python -m pytest --numprocesses "$workers" --dist loadfile --durations 25 -m "not gpu and not multi_gpu and not long" "$@"
