#!/usr/bin/env bash
# Everything that only a GPU can show, in one call of at most nine minutes; results are written as they come.
#
#   bash benchmarks/gpu.sh [--output DIR] [--miniature]
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="$(bash "$root/scripts/setup_env.sh")"
exec "$python" "$root/benchmarks/gpu.py" "$@"
