"""scripts/slurm.sh with SLURM's commands played by small scripts."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from torch.distributed.launcher.api import LaunchConfig

SCRIPT = Path(__file__).parents[2] / "scripts" / "slurm.sh"
SCONTROL = '[ $1 = show ] && printf "node7\\nnode8\\n" || echo "$@" >> scontrol.log'
SRUN = """echo "$TORCH_ELASTIC_SHUTDOWN_TIMEOUT" > patience.log
printf '%s\\n' "$@" > srun.log.draft; mv srun.log.draft srun.log
trap 'echo told >> srun.log; exit 143' TERM
while [ ! -e end ]; do sleep 0.05; done
exit 3"""


@pytest.fixture
def job(tmp_path):
    """The batch script of a job on two nodes, under way."""
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN)):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"JOB_ID": "42", "JOB_NUM_NODES": "2", "JOB_NODELIST": "node[7-8]", "CPUS_PER_TASK": "4"}
    environment = {f"SLURM_{name}": value for name, value in slurm.items()}
    environment["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    with subprocess.Popen(["bash", SCRIPT, "a b.yaml", "--epochs", "3"], cwd=tmp_path, env=environment) as process:
        patience = time.monotonic() + 60
        while not (tmp_path / "srun.log").exists():
            assert time.monotonic() < patience
            time.sleep(0.02)
        yield process
        (tmp_path / "end").touch()


def test_every_node_runs_torchrun_which_meets_at_the_first(job, tmp_path):
    (tmp_path / "end").touch()
    assert job.wait(60) == 3
    told = (tmp_path / "srun.log").read_text().splitlines()
    assert told[told.index("--rdzv-endpoint") + 1] == "node7:29500"
    assert told[told.index("--nnodes") + 1] == "2"
    assert told[told.index("mmgpt") :] == ["mmgpt", "train", "a b.yaml", "--epochs", "3", "--resume", "true"]
    assert not (tmp_path / "scontrol.log").exists()


def test_a_job_whose_time_is_up_tells_the_run_and_is_put_into_the_queue_again(job, tmp_path):
    time.sleep(0.2)  # until the script waits for srun
    job.send_signal(signal.SIGTERM)
    assert job.wait(60) == 143
    assert (tmp_path / "srun.log").read_text().endswith("told\n")
    assert (tmp_path / "scontrol.log").read_text() == "requeue 42\n"


def test_torchrun_waits_for_its_processes_for_nearly_as_long_as_slurm_does(job, tmp_path, monkeypatch):
    [notice] = re.findall(r"^#SBATCH --signal B:TERM@(\d+)$", SCRIPT.read_text(), re.MULTILINE)
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", (tmp_path / "patience.log").read_text().strip())
    patience = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=1).shutdown_timeout
    assert patience is not None
    assert int(notice) - 20 <= patience < int(notice)
