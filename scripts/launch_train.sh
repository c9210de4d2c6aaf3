#!/usr/bin/env bash
# Trains with all GPUs of the machine, or on a CPU. Creates the environment if it is missing. Resumes an
# interrupted run.
#
#   bash scripts/launch_train.sh --config configs/deblur/demo.yaml
#   bash scripts/launch_train.sh --config FILE [--resume auto|PATH|never] [--dry_run] [KEY VALUE ...]
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="$(bash "$root/scripts/setup_env.sh")"
exec "$python" "$root/scripts/launch.py" "$@"
