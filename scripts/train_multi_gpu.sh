#!/usr/bin/env bash
# Trains on a chosen number of GPUs of this machine.
#
#   bash scripts/train_multi_gpu.sh 4 --config FILE [KEY VALUE ...]
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
if [ $# -lt 1 ] || ! [[ "$1" =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: bash scripts/train_multi_gpu.sh NUM_GPUS --config FILE [KEY VALUE ...]" >&2
    exit 2
fi
num="$1"
shift
exec bash "$root/scripts/launch_train.sh" --num_processes "$num" "$@"
