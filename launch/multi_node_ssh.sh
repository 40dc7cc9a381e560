#!/usr/bin/env bash
# Train on several machines that ssh reaches without a password, each with this repository and its .venv in the same folder.
# Usage: HOSTS="node0 node1" ENGINE=fsdp2 PROCESSES=8 bash launch/multi_node_ssh.sh CONFIG.yaml ... key=value ...
# The first host is machine 0, which the others must reach at MAIN_HOST:MAIN_PORT; REPOSITORY is the folder there. Exit codes: single_node.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
read -ra hosts <<<"${HOSTS:?lists the machines, e.g. HOSTS='node0 node1'}"
main=${MAIN_HOST:-${hosts[0]#*@}}
settings=("ENGINE=${ENGINE:?names a file of launch/accelerate, e.g. ENGINE=fsdp2}"
  "PROCESSES=${PROCESSES:?says how many processes each machine starts, e.g. PROCESSES=8}"
  "NODES=${#hosts[@]}" "MAIN_HOST=$main" "MAIN_PORT=${MAIN_PORT:-29500}" "RESTARTS=${RESTARTS:-0}")
for name in PYTHON OMP_NUM_THREADS DS_ACCELERATOR HF_HUB_OFFLINE NCCL_SOCKET_IFNAME; do # what else a run may need there
  [ -z "${!name:-}" ] || settings+=("$name=${!name}")
done

run_id=$$-$RANDOM pids=() stopped=0
remote() { # host, then a command whose words arrive there as they are here
  ssh -o BatchMode=yes "$1" "cd $(printf '%q' "${REPOSITORY:-$PWD}") && $(printf '%q ' "${@:2}")"
}
# shellcheck disable=SC2329 # the trap calls it
stop() { # the far ends are told, for ssh forwards no signals
  stopped=1
  for i in "${!hosts[@]}"; do remote "${hosts[i]}" pkill -TERM -F "/tmp/wam-video-$run_id-$i.pid" || true; done
}
trap stop TERM USR1 INT
for i in "${!hosts[@]}"; do
  # shellcheck disable=SC2016 # expanded on the other machine
  remote "${hosts[i]}" env "${settings[@]}" "NODE_RANK=$i" bash -c \
    'echo $$ >"$0"; exec bash launch/single_node.sh "$@"' "/tmp/wam-video-$run_id-$i.pid" "$@" &
  pids+=($!)
done
result=0
for pid in "${pids[@]}"; do
  while code=0; wait "$pid" || code=$?; kill -0 "$pid" 2>/dev/null; do :; done
  [ "$result" -ne 0 ] || result=$code
done
for i in "${!hosts[@]}"; do remote "${hosts[i]}" rm -f "/tmp/wam-video-$run_id-$i.pid" || true; done
[ "$stopped" -eq 0 ] || result=75
exit "$result"
