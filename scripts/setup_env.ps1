# Finds or creates the Python environment and prints the path of its interpreter (Windows).
#
#   powershell -ExecutionPolicy Bypass -File scripts\setup_env.ps1
#
# The same as setup_env.sh: uses an active virtual or conda environment and installs missing packages into
# it; otherwise creates .venv in the repository. Installs nothing if requirements.txt has not changed.
$ErrorActionPreference = "Stop"
$root = Split-Path -Parent $PSScriptRoot

if ($env:VIRTUAL_ENV) { $environment = $env:VIRTUAL_ENV }
elseif ($env:CONDA_PREFIX -and $env:CONDA_DEFAULT_ENV -and $env:CONDA_DEFAULT_ENV -ne "base") { $environment = $env:CONDA_PREFIX }
else { $environment = Join-Path $root ".venv" }

# conda keeps python.exe at the top, a virtual environment in Scripts
$python = Join-Path $environment "Scripts\python.exe"
if (Test-Path (Join-Path $environment "python.exe")) { $python = Join-Path $environment "python.exe" }

$own = Join-Path $root ".venv"
if (-not (Test-Path $python) -and $environment -ne $own) {
    throw "setup_env: the active environment $environment has no python; install it there, or deactivate it"
}
if (-not (Test-Path $python)) {
    $base = if ($env:PYTHON) { $env:PYTHON } else { "python" }
    [Console]::Error.WriteLine("setup_env: making $environment")
    & $base -c "import sys; sys.exit(sys.version_info < (3, 10))"
    if ($LASTEXITCODE -ne 0) { throw "setup_env: $base is older than Python 3.10; set PYTHON to a newer one" }
    & $base -m venv $environment
    if ($LASTEXITCODE -ne 0) { throw "setup_env: $base cannot make a virtual environment" }
}

$requirements = Join-Path $root "requirements.txt"
$stamp = Join-Path $environment ".vrt-spike-requirements"
$same = (Test-Path $stamp) -and ((Get-FileHash $stamp).Hash -eq (Get-FileHash $requirements).Hash)
if (-not $same) {
    [Console]::Error.WriteLine("setup_env: installing requirements.txt into $environment")
    & $python -m pip install --quiet --disable-pip-version-check -r $requirements | Out-Null
    if ($LASTEXITCODE -ne 0) { throw "setup_env: pip failed; see its message above" }
    Copy-Item $requirements $stamp
}
Write-Output $python
