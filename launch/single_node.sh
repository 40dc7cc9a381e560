#!/usr/bin/env bash
# Train on this machine; as one of several where NODES, NODE_RANK, MAIN_HOST and MAIN_PORT say so, as the launchers beside this one do.
# Usage: ENGINE=multi_gpu PROCESSES=8 [RESTARTS=3] bash launch/single_node.sh CONFIG.yaml ... key=value ...
# On SIGTERM, SIGUSR1 or Ctrl-C the run saves a checkpoint and stops, and the exit code is 75: the same command goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
engine=${ENGINE:?names a file of launch/accelerate, e.g. ENGINE=multi_gpu}
processes=${PROCESSES:?says how many processes this machine starts, e.g. its GPUs: PROCESSES=8}
nodes=${NODES:-1}
[ $# -gt 0 ] || { echo "single_node: give the run: CONFIG.yaml ... key=value ..." >&2; exit 2; }
[ -f "launch/accelerate/$engine.yaml" ] || { echo "single_node: no launch/accelerate/$engine.yaml" >&2; exit 2; }
[ ! -d .venv/bin ] || export PATH="$PWD/.venv/bin:$PATH"

options=(--num_processes "$((nodes * processes))" --main_process_port "${MAIN_PORT:-29500}")
if [ "$nodes" -gt 1 ]; then
  rank=${NODE_RANK:-${SLURM_NODEID:-${JOB_COMPLETION_INDEX:?is not set, nor NODE_RANK: this machine\'s number, from 0}}}
  options+=(--num_machines "$nodes" --machine_rank "$rank" --main_process_ip "${MAIN_HOST:?is the address of machine 0}")
fi

stopped=0 child=''
# To the workers themselves: torchrun gives them half a minute after a signal of its own, which is short for a checkpoint.
# shellcheck disable=SC2329 # the trap calls it
stop() { stopped=1; [ -z "$child" ] || pkill -TERM -P "$child" || kill -TERM "$child" || true; }
trap stop TERM USR1 INT
for ((left = ${RESTARTS:-0}; ; left--)); do
  # A session of its own: signals to the group of this script reach this script alone.
  setsid "${PYTHON:-python}" -m accelerate.commands.launch --config_file "launch/accelerate/$engine.yaml" "${options[@]}" \
    -m wam_video.cli.train "$@" &
  child=$!
  while code=0; wait "$child" || code=$?; kill -0 "$child" 2>/dev/null; do :; done # a signal ends `wait`, not the run
  if [ "$code" -eq 0 ] || [ "$stopped" -eq 1 ] || [ "$left" -le 0 ]; then break; fi
  echo "single_node: exit code $code; starting again, $left restart(s) left" >&2
done
[ "$stopped" -eq 0 ] || code=75
exit "$code"
