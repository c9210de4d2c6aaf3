#!/usr/bin/env bash
# Trains on several GPUs of this machine, or of several machines that all run this command.
#
#   one machine:   bash scripts/train_multi_gpu.sh 4 --config FILE [KEY VALUE ...]
#   two machines:  NNODES=2 NODE_RANK=0 MASTER_ADDR=node0 bash scripts/train_multi_gpu.sh 8 --config FILE
#                  NNODES=2 NODE_RANK=1 MASTER_ADDR=node0 bash scripts/train_multi_gpu.sh 8 --config FILE
#
#   NNODES         machines (default 1)
#   NODE_RANK      number of this machine; 0 also generates the demo data and runs the comparison
#   MASTER_ADDR    name or address of machine 0, to which the processes connect
#   MASTER_PORT    port there (default 29400)
#   RDZV_ID        torchrun's rendezvous id, the same on all machines (default vrt_spike)
#   MAX_RESTARTS   how often processes that died are restarted; they resume (default 0)
#
# The first argument is the number of processes per machine, one per GPU. All machines need the same
# code, data and LOG.SAVE_DIR.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
if [ $# -lt 1 ] || ! [[ "$1" =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: bash scripts/train_multi_gpu.sh NUM_GPUS --config FILE [KEY VALUE ...]" >&2
    exit 2
fi
num="$1"
shift
nodes="${NNODES:-1}"
several=()
if [ "$nodes" -gt 1 ]; then
    if [ -z "${MASTER_ADDR:-}" ] || [ -z "${NODE_RANK:-}" ]; then
        echo "NNODES=$nodes needs MASTER_ADDR (machine 0) and NODE_RANK (0 to $((nodes - 1)))" >&2
        exit 2
    fi
    several=(--nnodes "$nodes" --node_rank "$NODE_RANK"
        --rdzv_endpoint "$MASTER_ADDR:${MASTER_PORT:-29400}" --rdzv_id "${RDZV_ID:-vrt_spike}")
fi
exec bash "$root/scripts/launch_train.sh" --num_processes "$num" \
    --max_restarts "${MAX_RESTARTS:-0}" "${several[@]}" "$@"
