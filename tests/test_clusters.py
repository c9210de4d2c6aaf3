"""What clusters do: several machines, a time limit, a queue."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from src.engine.signals import EXIT_REQUEUE
from src.paths import REPO_ROOT
from tests.training_cases import read_checkpoint, run_train, wait_for, write_run

SBATCH = REPO_ROOT / "scripts" / "slurm_train.sbatch"
MULTI_GPU = REPO_ROOT / "scripts" / "train_multi_gpu.sh"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="shell scripts for Linux")

# A stand-in for the training: exits with $CODE, or with 85 after SIGUSR1, or is ended by that
# signal.
TRAINING = """#!/usr/bin/env bash
[ -z "${DIES:-}" ] || { touch "$RECORD"; kill -USR1 $$; sleep 60; }
echo "$@" NODE_RANK=$NODE_RANK NNODES=$NNODES MASTER_ADDR=$MASTER_ADDR >> "$RECORD"
trap 'echo saved >> "$RECORD"; exit 85' USR1
touch "$RECORD.started"
for _ in $(seq "${WAIT:-0}"); do sleep 0.1; done
exit "${CODE:-0}"
"""
# srun forwards signals to what it has started.
SRUN = """#!/usr/bin/env bash
while [[ "$1" == --* ]]; do echo "srun $1" >> "$RECORD"; shift; done
SLURM_NODEID=0 "$@" &
child=$!
trap 'interrupted=1; kill -USR1 "$child"' USR1
while :; do
    interrupted=0
    wait "$child"; code=$?
    [ "$interrupted" = 1 ] || break
done
exit "$code"
"""
SCONTROL = """#!/usr/bin/env bash
echo "scontrol $*" >> "$RECORD"
if [ "$1" = show ]; then echo node7; echo node8; fi
"""


@pytest.fixture(name="cluster")
def _cluster(tmp_path):
    """Give an environment with a stand-in for SLURM and training; RECORD lists the calls."""
    programs, scripts = tmp_path / "bin", tmp_path / "a repo" / "scripts"
    for path, content in (
        (programs / "srun", SRUN),
        (programs / "scontrol", SCONTROL),
        (scripts / "train_multi_gpu.sh", TRAINING),
        (scripts / "setup_env.sh", "#!/usr/bin/env bash\necho python\n"),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        path.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "RECORD": str(tmp_path / "record"),
        "SLURM_SUBMIT_DIR": str(tmp_path / "a repo"),
        "SLURM_JOB_ID": "41",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_GPUS_ON_NODE": "4",
    }


@pytest.fixture(name="start")
def _start(cluster, processes):
    def start(*arguments: str, **changes: str) -> subprocess.Popen:
        return processes(["bash", str(SBATCH), *arguments], env={**cluster, **changes})

    return start


def record(environment: dict[str, str]) -> str:
    return Path(environment["RECORD"]).read_text()


def test_at_the_time_limit_the_training_saves_and_is_requeued(cluster, start):
    process = start("--config", "a file.yaml", WAIT="300", SLURM_CPUS_PER_TASK="16")
    wait_for(Path(cluster["RECORD"] + ".started").exists, process, 20)
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=20)
    lines = record(cluster)
    assert "4 --resume auto --config a file.yaml NODE_RANK=0 NNODES=2 MASTER_ADDR=node7" in lines
    assert "srun --cpus-per-task=16\n" in lines
    assert lines.index("saved") < lines.index("scontrol requeue 41")
    assert process.returncode == 0, output
    assert "requeued" in output
    assert f"REQUEUE_CODE={EXIT_REQUEUE} " in SBATCH.read_text()
    assert "#SBATCH --signal=B:USR1@120\n#SBATCH --requeue\n" in SBATCH.read_text()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        *(({"CODE": str(code)}, code) for code in (0, 1, 2, 143)),
        ({"DIES": "1"}, 128 + signal.SIGUSR1),  # the signal itself ends the training
    ],
)
def test_other_ends_are_not_requeued(cluster, start, changes, code):
    process = start(**changes)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == code, output
    assert "requeue" not in record(cluster)


def test_what_is_missing_is_named(start, processes, tmp_path):
    several = processes(["bash", str(MULTI_GPU), "2"], env={**os.environ, "NNODES": "2"})
    for process, words in (
        (start(SLURM_SUBMIT_DIR=str(tmp_path)), "is not the root of the repository"),
        (several, "NNODES=2 needs MASTER_ADDR (machine 0) and NODE_RANK (0 to 1)"),
    ):
        output, _ = process.communicate(timeout=20)
        assert process.returncode == 2
        assert words in output


def test_the_machines_are_passed_to_the_launcher(tmp_path):
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    shutil.copy(MULTI_GPU, scripts)
    (scripts / "launch_train.sh").write_text('echo "$@"\n')
    environment = {**os.environ, "NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "node0"}

    def printed(**changes):
        command = ["bash", str(scripts / MULTI_GPU.name), "8", "--config", "a b.yaml"]
        return subprocess.run(
            command, env={**environment, **changes}, capture_output=True, text=True, check=True
        ).stdout.strip()

    assert printed() == (
        "--num_processes 8 --max_restarts 0 --nnodes 2 --node_rank 1 "
        "--rdzv_endpoint node0:29400 --rdzv_id vrt_spike --config a b.yaml"
    )
    one = printed(NNODES="1", MAX_RESTARTS="3")
    assert one == "--num_processes 8 --max_restarts 3 --config a b.yaml"


def test_the_script_for_windows_knows_the_same_variables():
    names = {"NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "RDZV_ID", "MAX_RESTARTS"}
    for path in (MULTI_GPU, MULTI_GPU.with_suffix(".ps1")):
        code = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        assert names <= set(re.findall(r"[A-Z_]{5,}", "\n".join(code)))


@pytest.mark.nightly
def test_two_machines_train_what_two_processes_train(tmp_path, processes):
    """Two launchers on this machine meet at a port, as two machines would."""
    config = write_run(tmp_path, TRAIN__MAX_STEPS=2, TRAIN__GRADIENT_ACCUMULATION_STEPS=1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    meeting = ["--nnodes", "2", "--rdzv_endpoint", f"127.0.0.1:{port}", "--rdzv_id", "test"]
    command = [sys.executable, str(REPO_ROOT / "scripts/launch.py"), "--config", str(config)]
    machines = [
        processes([*command, *meeting, "--node_rank", str(rank), "EXP_NAME", "machines"])
        for rank in range(2)
    ]
    outputs = [machine.communicate(timeout=150)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], "\n".join(outputs)
    assert "2 clips a step (2 rank(s)" in outputs[0] + outputs[1]
    run_train(config, "EXP_NAME", "processes", processes=2)
    ours, theirs = (read_checkpoint(tmp_path, name)["model"] for name in ("machines", "processes"))
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=1e-4, atol=1e-5, msg=name)
