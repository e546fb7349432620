"""Detects how Slurm has started this process, and rejects launches that would hang or train ranks separately."""

import os
from typing import Any

from lightning.pytorch.plugins.environments import ClusterEnvironment, LightningEnvironment, SLURMEnvironment


def environment(devices: Any, num_nodes: int, program: str = "train.py") -> ClusterEnvironment | None:
    """Returns the environment that starts the ranks: Slurm's, Lightning's for a job of one task, None outside of Slurm.

    Slurm's environment is used regardless of the job's name: Lightning would ignore it in a job named "bash" or
    "interactive", and each rank would train separately. Lightning's requeueing is disabled, because it saves inside a
    signal handler.

    Args:
        devices: the Trainer's devices on each node.
        num_nodes: the Trainer's number of nodes.
        program: name of the program, for the messages.

    Raises:
        ValueError: if the job has several tasks but was not started by srun, or if tasks and devices differ in number.
    """
    if "SLURM_JOB_ID" not in os.environ:
        return None
    tasks = int(os.environ.get("SLURM_NTASKS") or os.environ.get("SLURM_JOB_NUM_NODES", "1"))  # at least one per node
    if "SLURM_STEP_ID" not in os.environ:
        if tasks > 1:
            raise ValueError(
                f"srun: this job has {tasks} tasks, but {program} was started once, without srun: it would wait for "
                f"the others forever. Use: srun python {program} ..., or better: sbatch slurm/train.sh ..."
            )
        return LightningEnvironment()
    nodes = int(os.environ.get("SLURM_STEP_NUM_NODES", "1"))
    if tasks == 1 and (num_nodes, nodes) == (1, 1):
        return LightningEnvironment()  # for example in srun --pty bash: trainer.devices=2 starts its own processes
    per_node = tasks // nodes
    if num_nodes != nodes or (isinstance(devices, int) and devices > 0 and devices != per_node):
        raise ValueError(
            f"trainer.devices, trainer.num_nodes: Slurm has started {tasks} tasks on {nodes} nodes, but the options "
            f"are {devices} and {num_nodes}. Use trainer.devices={per_node} trainer.num_nodes={nodes}, or request "
            f"--nodes={num_nodes} --ntasks-per-node={devices}"
        )
    os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(per_node))  # required by Lightning
    return SLURMEnvironment(auto_requeue=False)
