# Trains on several GPUs of this machine, or of several machines (Windows); the same as train_multi_gpu.sh.
#
#   powershell -ExecutionPolicy Bypass -File scripts\train_multi_gpu.ps1 4 --config FILE [KEY VALUE ...]
#
# The environment variables are those of train_multi_gpu.sh: NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT, RDZV_ID,
# MAX_RESTARTS. Not tried on Windows; there the processes exchange gradients through gloo, as NCCL is for Linux.
$ErrorActionPreference = "Stop"
function Get-Setting([string]$name, [string]$default) {
    $value = [Environment]::GetEnvironmentVariable($name)
    if ($value) { $value } else { $default }
}

if ($args.Count -lt 1 -or "$($args[0])" -notmatch '^[1-9][0-9]*$') {
    [Console]::Error.WriteLine("usage: train_multi_gpu.ps1 NUM_GPUS --config FILE [KEY VALUE ...]")
    exit 2
}
$options = @("--num_processes", $args[0], "--max_restarts", (Get-Setting "MAX_RESTARTS" "0"))
$nodes = [int](Get-Setting "NNODES" "1")
if ($nodes -gt 1) {
    if (-not $env:MASTER_ADDR -or -not $env:NODE_RANK) {
        [Console]::Error.WriteLine("NNODES=$nodes needs MASTER_ADDR (machine 0) and NODE_RANK (0 to $($nodes - 1))")
        exit 2
    }
    $endpoint = "$($env:MASTER_ADDR):$(Get-Setting 'MASTER_PORT' '29400')"
    $options += @("--nnodes", $nodes, "--node_rank", $env:NODE_RANK)
    $options += @("--rdzv_endpoint", $endpoint, "--rdzv_id", (Get-Setting "RDZV_ID" "vrt_spike"))
}
$rest = @($args | Select-Object -Skip 1)
& (Join-Path $PSScriptRoot "launch_train.ps1") @options @rest
exit $LASTEXITCODE
