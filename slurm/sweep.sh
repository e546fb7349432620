#!/usr/bin/env bash
# Trains every combination of options; each is one element of a job array and has its own folder:
#
#     sbatch --array=0-5 slurm/sweep.sh name=rates training.optimizer.lr=1e-3,3e-4 seed=0,1,2      # runs/rates_0 .. _5
#     sbatch --array=0-5%2 slurm/sweep.sh ...      # two at a time
#     sbatch --array=3 slurm/sweep.sh ...          # the fourth one again, which resumes
#
# As in Hydra's multirun, commas separate alternatives, except in brackets or quotes ('labels=[a,b]'), and the last
# option changes fastest. Apart from that it works like slurm/train.sh.

#SBATCH --job-name=audio_diffusion_sweep
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1             # = GPUs per node
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log

set -uo pipefail
cd "${SLURM_SUBMIT_DIR:?this script is for sbatch: sbatch --array=0-5 slurm/sweep.sh ...}" || exit 2
source slurm/common.sh || exit 2

alternatives() { # TEXT: prints its parts between commas, one per line; commas in brackets and quotes do not count
    local text=$1 part= depth=0 quote= i c
    for ((i = 0; i < ${#text}; i++)); do
        c=${text:i:1}
        case $c in
        [\'\"]) if [[ $quote == "$c" ]]; then quote=; else quote=${quote:-$c}; fi ;;
        '[' | '{' | '(') depth=$((depth + 1)) ;;
        ']' | '}' | ')') depth=$((depth - 1)) ;;
        esac
        if [[ $c == , && $depth == 0 && -z $quote ]]; then
            echo "$part"
            part=
        else part+=$c; fi
    done
    echo "$part"
}

[[ -n $(option name "$@") ]] || die "a sweep needs a name: name=SWEEP"
count=1 chosen=()
index=${SLURM_ARRAY_TASK_ID:-0}
for ((n = $#; n > 0; n--)); do
    argument=${!n}
    mapfile -t values < <(alternatives "${argument#*=}")
    chosen=("${argument%%=*}=${values[index / count % ${#values[@]}]}" "${chosen[@]}")
    count=$((count * ${#values[@]}))
done
array=${SLURM_ARRAY_TASK_MIN:-none}-${SLURM_ARRAY_TASK_MAX:-none}
if [[ $array != "0-$((count - 1))" || ${SLURM_ARRAY_TASK_COUNT:-0} != "$count" ]] &&
    [[ ${SLURM_ARRAY_TASK_COUNT:-0} != 1 || $index -ge $count ]]; then
    die "there are $count combinations, but the array is $array: use sbatch --array=0-$((count - 1)) slurm/sweep.sh $*"
fi
say "combination $index of 0 to $((count - 1)): ${chosen[*]}"
train "${chosen[@]}"
