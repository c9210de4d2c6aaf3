#!/usr/bin/env bash
# Runs the tests, two at a time with one thread each. Creates the environment if it is missing.
# Passes its arguments to pytest.
#
#   bash scripts/run_tests.sh
#   bash scripts/run_tests.sh tests/test_voxelizer.py -x
#   bash scripts/run_tests.sh -m nightly      # the long tests, which the first command omits
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="$(bash "$root/scripts/setup_env.sh")"
cd "$root"
export OMP_NUM_THREADS=1
export PYTHONDONTWRITEBYTECODE=  # each of many processes would compile every module again
exec "$python" -m pytest --numprocesses 2 --dist worksteal "$@"
