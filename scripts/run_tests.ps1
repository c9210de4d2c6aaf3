# Runs the tests (Windows); the same as run_tests.sh. Arguments go to pytest.
#
#   powershell -ExecutionPolicy Bypass -File scripts\run_tests.ps1
$ErrorActionPreference = "Stop"
$root = Split-Path -Parent $PSScriptRoot
$python = & (Join-Path $PSScriptRoot "setup_env.ps1") | Select-Object -Last 1
Set-Location $root
$env:OMP_NUM_THREADS = "1"
& $python -m pytest --numprocesses 2 --dist worksteal @args
exit $LASTEXITCODE
