"""How Slurm has started this process: what would hang, or train alone, ends here, with what to type."""

import os
from typing import Any

from lightning.pytorch.plugins.environments import ClusterEnvironment, LightningEnvironment, SLURMEnvironment


def environment(devices: Any, num_nodes: int, program: str = "train.py") -> ClusterEnvironment | None:
    """Who starts the ranks: Slurm, Lightning where a job runs on one task, or None outside of Slurm.

    Slurm's environment is taken whatever the job is called: Lightning alone would ignore it in a job named "bash" or
    "interactive", and each rank would train on its own. Its requeueing is off: it saves inside a signal handler.

    Args:
        devices: the Trainer's, on each node.
        num_nodes: the Trainer's.
        program: what the user runs, for the messages.

    Raises:
        ValueError: if the job has several tasks but srun was left out, or has not as many as there are devices.
    """
    if "SLURM_JOB_ID" not in os.environ:
        return None
    tasks = int(os.environ.get("SLURM_NTASKS") or os.environ.get("SLURM_JOB_NUM_NODES", "1"))  # at least one a node
    if "SLURM_STEP_ID" not in os.environ:
        if tasks > 1:
            raise ValueError(
                f"srun: this job has {tasks} tasks, but {program} was started once, without srun: it would wait for "
                f"the others for ever. Write: srun python {program} ..., or better: sbatch slurm/train.sh ..."
            )
        return LightningEnvironment()
    nodes = int(os.environ.get("SLURM_STEP_NUM_NODES", "1"))
    if tasks == 1 and (num_nodes, nodes) == (1, 1):
        return LightningEnvironment()  # as in srun --pty bash: trainer.devices=2 starts its own processes
    per_node = tasks // nodes
    if num_nodes != nodes or (isinstance(devices, int) and devices > 0 and devices != per_node):
        raise ValueError(
            f"trainer.devices, trainer.num_nodes: Slurm has started {tasks} tasks on {nodes} nodes, but these are "
            f"{devices} and {num_nodes}. Write trainer.devices={per_node} trainer.num_nodes={nodes}, or ask Slurm for "
            f"others: --nodes={num_nodes} --ntasks-per-node={devices}"
        )
    os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(per_node))  # Lightning insists on it
    return SLURMEnvironment(auto_requeue=False)
