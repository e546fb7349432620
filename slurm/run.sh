#!/usr/bin/env bash
# Runs another program of the project as a job on one GPU, with all arguments:
#
#     sbatch slurm/run.sh sample.py ckpt=runs/my_run num_samples=1000
#     sbatch slurm/run.sh evaluate.py ckpt=runs/my_run
#     sbatch --gpus-per-node=0 --cpus-per-task=32 slurm/run.sh make_shards.py input=FOLDER output=SHARDS
#     sbatch --dependency=afterok:TRAINING_JOB slurm/run.sh sample.py ckpt=runs/my_run

#SBATCH --job-name=audio_diffusion_run
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=4:00:00
#SBATCH --output=%x-%j.log

set -uo pipefail
cd "${SLURM_SUBMIT_DIR:?this script is for sbatch: sbatch slurm/run.sh PROGRAM ...}" || exit 2
source slurm/common.sh || exit 2
[[ ${1:-} == *.py && $1 != train.py && -e $1 ]] ||
    die "expected sample.py, evaluate.py or make_shards.py and its options, got: ${*:-nothing}. For train.py: slurm/train.sh"
((SLURM_NTASKS == 1)) || die "$1 is a single process: leave --nodes and --ntasks-per-node at 1"
launch "$@"
