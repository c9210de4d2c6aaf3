# Runs the tests (Windows); the same as run_tests.sh. Arguments go to pytest.
#
#   powershell -ExecutionPolicy Bypass -File scripts\run_tests.ps1
$ErrorActionPreference = "Stop"
$root = Split-Path -Parent $PSScriptRoot
$python = & (Join-Path $PSScriptRoot "setup_env.ps1") | Select-Object -Last 1
Set-Location $root
& $python -m pytest tests/ @args
exit $LASTEXITCODE
