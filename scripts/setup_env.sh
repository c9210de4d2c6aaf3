#!/usr/bin/env bash
# Finds or creates the Python environment and prints the path of its interpreter.
#
#   bash scripts/setup_env.sh
#
# Uses an active virtual or conda environment and installs missing packages into it; otherwise creates
# .venv in the repository. Installs nothing if requirements.txt has not changed since the last time.
# PYTHON=/path/to/python chooses the interpreter for .venv.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
say() { echo "setup_env: $*" >&2; }

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }

find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        if command -v "$PYTHON" >/dev/null 2>&1 && is_new_enough "$PYTHON"; then
            command -v "$PYTHON"
            return
        fi
        say "PYTHON=$PYTHON is no Python >= 3.10"
        return 1
    fi
    for candidate in python3 python3.12 python3.11 python3.13 python3.10 python; do
        if command -v "$candidate" >/dev/null 2>&1 && is_new_enough "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    say "no Python >= 3.10 found; install one, or give its path: PYTHON=/path/to/python3.11 $0"
    return 1
}

has_uv() { command -v uv >/dev/null 2>&1; }

# A killed set-up can leave an interpreter without pip; the environment is then created again.
is_usable() { [ -x "$1" ] && { has_uv || "$1" -m pip --version >/dev/null 2>&1; }; }

make_own_environment() {
    local base
    base="$(find_python)"
    say "making $environment from $base"
    rm -rf "$environment"
    if has_uv; then
        uv venv --quiet --python "$base" "$environment" >&2
    elif ! "$base" -m venv "$environment" >&2; then
        rm -rf "$environment"
        say "$base cannot make a virtual environment; on Debian and Ubuntu:" \
            "apt install $("$base" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
        return 1
    fi
}

if [ -n "${VIRTUAL_ENV:-}" ]; then
    environment="$VIRTUAL_ENV"
elif [ -n "${CONDA_PREFIX:-}" ] && [ "${CONDA_DEFAULT_ENV:-base}" != base ]; then
    environment="$CONDA_PREFIX"
else
    environment="$root/.venv"
fi
python="$environment/bin/python"

if ! is_usable "$python"; then
    if [ "$environment" != "$root/.venv" ]; then # belongs to the user: never created or removed here
        say "the active environment $environment has no python with pip;" \
            "install both into it (conda install python pip), or deactivate it"
        exit 1
    fi
    make_own_environment
fi
if ! is_new_enough "$python"; then
    say "$python is $("$python" -V 2>&1); needed is Python >= 3.10"
    exit 1
fi

stamp="$environment/.vrt-spike-requirements"
if ! cmp -s "$root/requirements.txt" "$stamp"; then
    say "installing requirements.txt into $environment (a minute or two, up to 6 GB with CUDA)"
    if has_uv; then
        uv pip install --quiet --python "$python" -r "$root/requirements.txt" >&2
    else
        "$python" -m pip install --quiet --disable-pip-version-check -r "$root/requirements.txt" >&2
    fi
    cp "$root/requirements.txt" "$stamp"
fi
echo "$python"
