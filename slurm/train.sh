#!/usr/bin/env bash
# Trains under Slurm. From the project's folder, on a file system that all nodes share:
#
#     sbatch slurm/train.sh experiment=speech data.train=SHARDS name=my_run
#     sbatch --nodes=2 --gpus-per-node=8 --ntasks-per-node=8 slurm/train.sh experiment=speech name=my_run
#
# Everything after the script's name goes to train.py. Nodes and devices are taken from Slurm: one task per GPU.
# Shortly before the time limit, and when the job is preempted with grace, the run saves, and the job is queued again;
# it goes on in the same folder, at the same step. To stop for good: scancel JOBID.

#SBATCH --job-name=audio_diffusion      # not "bash" or "interactive": Lightning would then train on one process
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1             # = GPUs per node
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@180             # to this script, 180 s before the limit: time for a step and a save
#SBATCH --requeue
#SBATCH --open-mode=append              # a requeued job goes on in the same log
#SBATCH --output=%x-%j.log

set -uo pipefail                        # no -e: srun's exit status is wanted
cd "${SLURM_SUBMIT_DIR:?this script is for sbatch: sbatch slurm/train.sh ...}" || exit 1

name=
for argument in "$@"; do
    case $argument in name=*) name=${argument#name=} ;; esac
done
if [[ -z $name ]]; then
    name=job_$SLURM_JOB_ID              # the same in every life of the job
    set -- "$@" "name=$name"
fi
export AUDIO_DIFFUSION_STOP_FILE=$PWD/runs/$name/stop   # train.py saves and ends once this file is there
mkdir -p "runs/$name" && rm -f "$AUDIO_DIFFUSION_STOP_FILE" "$AUDIO_DIFFUSION_STOP_FILE.done"
trap 'touch "$AUDIO_DIFFUSION_STOP_FILE"' USR1 TERM

python=.venv/bin/python
[[ -x $python ]] || python=python       # or the environment that sbatch was called in
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} PYTHONFAULTHANDLER=1

# SIGUSR1 goes to this script alone (B: above): it would kill the DataLoader's workers.
srun --kill-on-bad-exit=1 "$python" -u train.py \
    "trainer.num_nodes=$SLURM_JOB_NUM_NODES" "trainer.devices=${SLURM_NTASKS_PER_NODE:-1}" "$@" &
step=$!
wait "$step"; status=$?
while kill -0 "$step" 2>/dev/null; do wait "$step"; status=$?; done   # a trap ends wait early

if [[ -e $AUDIO_DIFFUSION_STOP_FILE.done ]]; then
    echo "stopped and saved; queueing job $SLURM_JOB_ID again"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
