#!/usr/bin/env bash
# Trains with everything that is here: the environment is made if it is missing, all GPUs of the
# machine are used (a CPU where there is none), an interrupted run goes on where it stopped.
#
#   bash scripts/launch_train.sh --config configs/deblur/demo.yaml
#   bash scripts/launch_train.sh --config FILE [--resume auto|PATH|never] [--dry_run] [KEY VALUE ...]
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="$(bash "$root/scripts/setup_env.sh")"
exec "$python" "$root/scripts/launch.py" "$@"
