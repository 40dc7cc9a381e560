#!/usr/bin/env bash
# Lint (docstrings too), format, types, layers, spelling in one command; every tool runs, the first failure is the exit code.
# Usage: bash launch/check.sh [--fix]
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x .venv/bin/ruff ] || bash launch/install.sh train,data,sim,serve,dev
export PATH="$PWD/.venv/bin:$PATH"
if [ "${1:-}" = "--fix" ]; then ruff check --fix --quiet . || true; ruff format --quiet .; fi
code=0
step() { echo "== $*"; "$@" || { local rc=$?; [ "$code" -ne 0 ] || code=$rc; }; }
step ruff check .
step ruff format --check --quiet .
step lint-imports --no-logo
step pyright --warnings --level error
step codespell wam_video data_pipelines configs launch tests model_cards README.md CHANGELOG.md
if command -v shellcheck >/dev/null; then step shellcheck launch/*.sh launch/*.sbatch .ci/run; fi
[ "$code" -eq 0 ] && echo "all clean"
exit "$code"
