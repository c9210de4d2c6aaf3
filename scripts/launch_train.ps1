# Trains on all GPUs of the machine, or on a CPU (Windows); the same as launch_train.sh.
#
#   powershell -ExecutionPolicy Bypass -File scripts\launch_train.ps1 --config configs\deblur\demo.yaml
$ErrorActionPreference = "Stop"
$python = & (Join-Path $PSScriptRoot "setup_env.ps1") | Select-Object -Last 1
& $python (Join-Path $PSScriptRoot "launch.py") @args
exit $LASTEXITCODE
