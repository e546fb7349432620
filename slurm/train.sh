#!/usr/bin/env bash
# Trains under Slurm. From the project's folder, on a file system that all nodes share:
#
#     sbatch slurm/train.sh experiment=speech data.train=SHARDS name=my_run
#     sbatch --nodes=2 --gpus-per-node=8 --ntasks-per-node=8 slurm/train.sh experiment=speech name=my_run
#
# All arguments after the script's name are passed to train.py. Nodes and devices are taken from Slurm: one task per GPU.
# Shortly before the time limit, on preemption, and after a crash (if there was progress), the job is queued again and
# continues in the same folder at the same step. To end it permanently: scancel JOBID. See docs/cluster.md

#SBATCH --job-name=audio_diffusion
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1             # = GPUs per node
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8               # data.num_workers and one more
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@180             # signals this script 180 s before the limit, which is enough for a step and a save
#SBATCH --requeue
#SBATCH --open-mode=append              # a requeued job continues the same log
#SBATCH --output=%x-%j.log

set -uo pipefail                        # no -e, because srun's exit status is needed
cd "${SLURM_SUBMIT_DIR:?this script is for sbatch: sbatch slurm/train.sh ...}" || exit 2
source slurm/common.sh || exit 2        # settings (containers, retries) are at its top
train "$@"
