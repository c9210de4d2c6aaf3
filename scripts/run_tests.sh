#!/usr/bin/env bash
# Runs the tests; makes the environment first if it is missing. Arguments go to pytest.
#
#   bash scripts/run_tests.sh
#   bash scripts/run_tests.sh -k voxel -x
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="$(bash "$root/scripts/setup_env.sh")"
cd "$root"
exec "$python" -m pytest tests/ "$@"
