"""Who starts the ranks, from what Slurm says in the environment."""

import pytest
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment

from audio_diffusion.callbacks.cluster.slurm import environment

BATCH = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "bash", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}
STEP = {**BATCH, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_NODES": "2", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}


@pytest.fixture
def set_slurm(monkeypatch):
    def set_to(variables):
        for name in ("JOB_ID", "STEP_ID", "NTASKS", "NTASKS_PER_NODE", "JOB_NAME", "PROCID"):
            monkeypatch.delenv(f"SLURM_{name}", raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    yield set_to
    set_to({"SLURM_NTASKS_PER_NODE": "1"})  # so that what `environment` adds is taken away


def test_slurm_starts_the_ranks_under_srun_whatever_the_job_is_called(set_slurm):
    set_slurm(STEP)
    slurm = environment(1, 2)
    assert isinstance(slurm, SLURMEnvironment)
    assert not slurm.auto_requeue
    assert slurm.world_size() == 2


@pytest.mark.parametrize(
    ("variables", "kind"),
    [
        ({}, type(None)),
        (
            {**BATCH, "SLURM_NTASKS": "1"},
            LightningEnvironment,
        ),  # a job of one task, without srun
        ({**STEP, "SLURM_NTASKS": "1", "SLURM_STEP_NUM_NODES": "1"}, LightningEnvironment),  # srun --pty bash
    ],
)
def test_otherwise_lightning_does(set_slurm, variables, kind):
    set_slurm(variables)
    assert type(environment(8, 1)) is kind


@pytest.mark.parametrize(
    ("variables", "devices", "nodes", "message"),
    [
        (BATCH, 1, 2, "srun: this job has 2 tasks.*Use: srun python train.py .*, or better: sbatch"),
        (STEP, 1, 1, "trainer.devices=1 trainer.num_nodes=2, or request --nodes=1 --ntasks-per-node=1"),
        (STEP, 4, 2, "Slurm has started 2 tasks on 2 nodes, but the options are 4 and 2. Use trainer.devices=1"),
    ],
)  # fmt: skip
def test_what_would_hang_is_refused(set_slurm, variables, devices, nodes, message):
    set_slurm(variables)
    with pytest.raises(ValueError, match=message):
        environment(devices, nodes)
