# What the scripts beside this share. They source it; it is not for sbatch.
#
# Settings, also from the environment: CONTAINER=image.sif sbatch slurm/train.sh ...
CONTAINER=${CONTAINER:-}            # none: .venv of this folder, or the environment that sbatch was called in
                                    # FILE.sif: Apptainer; else pyxis (enroot): an image of a registry, or FILE.sqsh
CONTAINER_MOUNTS=${CONTAINER_MOUNTS:-}  # HOST:INSIDE,...; this folder is always mounted, and its code is what runs
SAVE_SECONDS=${SAVE_SECONDS:-120}   # before the time limit training stops, whatever --signal says
MAX_FAILURES=${MAX_FAILURES:-3}     # lives in a row that crash without a new checkpoint; then the job is given up

# of this job alone: by the bare id of an array's last element Slurm understands the whole array
JOB=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID} JOB=${JOB:-$SLURM_JOB_ID}

say() { echo "$(date '+%F %T') $*"; }
die() { echo "error: $*" >&2; exit 2; }

option() { # KEY ARGUMENT...: the value of the last KEY=VALUE among the arguments
    local key=$1 value= argument
    for argument in "${@:2}"; do [[ $argument != "$key="* ]] || value=${argument#*=}; done
    echo "$value"
}

check_job() { # ARGUMENT...: that nodes and tasks are what train.py needs, before anything is started
    [[ -e train.py ]] || die "no train.py in $PWD: call sbatch from the project's folder"
    local nodes
    nodes=$(option trainer.num_nodes "$@")
    [[ -z $nodes || $nodes == "$SLURM_JOB_NUM_NODES" ]] ||
        die "trainer.num_nodes=$nodes, but this job has $SLURM_JOB_NUM_NODES: nodes are asked of Slurm. Write" \
            "sbatch --nodes=$nodes slurm/train.sh ${*}"
    [[ -n ${SLURM_NTASKS_PER_NODE:-} ]] ||
        die "ask for tasks by --ntasks-per-node=GPUS_OF_A_NODE --nodes=NODES, not by --ntasks"
    local gpus=${SLURM_GPUS_ON_NODE:-$SLURM_NTASKS_PER_NODE}
    ((gpus == SLURM_NTASKS_PER_NODE || gpus == 0)) ||
        die "one task a GPU: this node has $gpus GPUs for $SLURM_NTASKS_PER_NODE tasks." \
            "Write --gpus-per-node=$gpus --ntasks-per-node=$gpus"
    [[ -z ${SLURM_GPUS_PER_TASK:-} ]] ||
        die "--gpus-per-task hides the node's other GPUs from each task, which NCCL needs: write --gpus-per-node"
}

check_shared() { # FOLDER: that every node sees it
    ((SLURM_JOB_NUM_NODES > 1)) || return 0
    local token=$1/.seen_by_all.$SLURM_JOB_ID seen=0
    : >"$token"
    # shellcheck disable=SC2016
    srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 bash -c '[[ -e $0 ]] || {
        echo "error: node $(hostname) does not see $0. The run'\''s folder must lie on a file system that all nodes" \
            "share: call sbatch from a folder there, or give run_dir=FOLDER" >&2
        exit 2
    }' "$token" || seen=$?
    rm -f "$token"
    ((seen != 2)) || exit 2 # another status is Slurm's own trouble, which is not the user's mistake
}

launch() { # ARGUMENT...: python with the arguments, once a task
    local srun=(srun --kill-on-bad-exit=1) python=.venv/bin/python
    [[ -x $python ]] || python=python
    # not passed on by Slurm itself; one thread, since the ranks of a node share its cores
    export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} PYTHONFAULTHANDLER=1
    [[ -z $CONTAINER ]] || AUDIO_DIFFUSION_COMMIT=$(git describe --always --dirty --abbrev=40 --exclude='*' 2>/dev/null)
    export AUDIO_DIFFUSION_COMMIT=${AUDIO_DIFFUSION_COMMIT:-} # images have no git
    case $CONTAINER in
    '') "${srun[@]}" "$python" -u "$@" ;;
    *.sif)
        PYTHONPATH=$PWD/src "${srun[@]}" apptainer exec --nv --pwd "$PWD" \
            --bind "$PWD${CONTAINER_MOUNTS:+,$CONTAINER_MOUNTS}" "$CONTAINER" python -u "$@"
        ;;
    *)
        PYTHONPATH=$PWD/src "${srun[@]}" --container-image="$CONTAINER" --container-workdir="$PWD" \
            --container-mounts="$PWD:$PWD${CONTAINER_MOUNTS:+,$CONTAINER_MOUNTS}" python -u "$@"
        ;;
    esac
}

job() { scontrol show job "$JOB" | sed -n "s/.*\b$1=\([^ ]*\).*/\1/p" | head -1; }

seconds_to_train() { # until SAVE_SECONDS before the time limit; nothing where there is none
    local end
    end=$(date -d "$(job EndTime)" +%s 2>/dev/null) && echo $((end - SAVE_SECONDS - $(date +%s)))
}

stop_before_the_end() { # FILE: makes it SAVE_SECONDS before the time limit, which may be moved meanwhile
    local left
    while left=$(seconds_to_train); do
        if ((left <= 0)); then touch "$1"; return; fi
        sleep $((left < 300 ? left : 300))
    done
}

newest_step() { # FOLDER: of its newest checkpoint, 0 without one
    local newest
    newest=$(cd "$1/checkpoints" 2>/dev/null && printf '%s\n' step_* | sed -n 's/^step_0*\([0-9]\+\)\(\.ckpt\)\?$/\1/p' | sort -n | tail -1)
    echo "${newest:-0}"
}

job_log() { # the file that this script and srun print to; nothing where they print elsewhere, as in a terminal
    local file
    file=$(readlink -f "/proc/$$/fd/2") && [[ -f $file ]] && echo "$file"
}

size_of() { stat -c %s "$1" 2>/dev/null || echo 0; }

ends_of_tasks() { # FILE OFFSET: how srun says the step's tasks ended, in order: "node2: task 1: Killed"
    [[ -z $1 ]] || tail -c "+$(($2 + 1))" "$1" | tr '\r' '\n' | sed -n 's/^srun: error: \([^ :]*: tasks\? [0-9,-]*: .*\)/\1/p'
}

say_why() { # STATUS ENDS: srun's own status is that of the first task to end or of those that srun ended then
    [[ -z $2 ]] || say "how the tasks ended, the first one first: ${2//$'\n'/; }"
    if (($1 == 137)) || grep -Eq ': (Killed|Out Of Memory)' <<<"$2"; then
        say "a rank was killed: by hand, or since memory ran out (more --mem, fewer data.num_workers)"
    fi
    if (($1 == 70)) || grep -q ': Exited with exit code 70$' <<<"$2"; then
        say "a rank was stuck; the stacks of all are above"
    fi
}

requeue() { # WHY
    say "$1: queueing job $JOB again"
    scontrol requeue "$JOB" || say "that failed: sbatch the same command again, it goes on where this ended"
}

train() { # ARGUMENT...: of train.py
    local name run stop left python_run timer status before after log log_size failures=0
    name=$(option name "$@")
    if [[ -z $name ]]; then
        name=job_${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID} # the same in every life of the job
    fi
    name+=${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID} # each element of an array has its own folder
    run=$(option run_dir "$@")
    run=${run:-runs/$name} stop=$run/stop
    check_job "$@"
    left=$(seconds_to_train) && ((left < SAVE_SECONDS)) &&
        die "--time leaves $((left > 0 ? left : 0)) s to train, beside SAVE_SECONDS=$SAVE_SECONDS to save in: ask for more"
    mkdir -p "$run" || die "the run's folder $run cannot be made"
    rm -f "$stop" "$stop".*
    [[ ${SLURM_RESTART_COUNT:-0} != 0 ]] || rm -f "$run/failures"
    check_shared "$run"

    export AUDIO_DIFFUSION_STOP_FILE=$PWD/$stop # train.py saves and ends once this file is there
    [[ $stop != /* ]] || AUDIO_DIFFUSION_STOP_FILE=$stop
    # of rank 0, which runs on this node: one that is free here; Lightning's own follows from the job's id alone
    export MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
    while (: <"/dev/tcp/127.0.0.1/$MASTER_PORT") 2>/dev/null; do MASTER_PORT=$((MASTER_PORT + 1)); done
    trap 'touch "$AUDIO_DIFFUSION_STOP_FILE"' USR1 TERM
    stop_before_the_end "$AUDIO_DIFFUSION_STOP_FILE" &
    timer=$!
    before=$(newest_step "$run")
    say "job $JOB, life $((${SLURM_RESTART_COUNT:-0} + 1)), on $SLURM_JOB_NODELIST: $run from step $before"

    log=$(job_log) log_size=$(size_of "$log")
    launch train.py "trainer.num_nodes=$SLURM_JOB_NUM_NODES" "trainer.devices=$SLURM_NTASKS_PER_NODE" "$@" "name=$name" &
    python_run=$!
    wait "$python_run"; status=$?
    while kill -0 "$python_run" 2>/dev/null; do wait "$python_run"; status=$?; done # a trap ends wait early
    kill "$timer" 2>/dev/null
    after=$(newest_step "$run")

    [[ $(job JobState) == RUNNING ]] || exit "$status" # cancelled, or queued again by Slurm itself
    if [[ -e $stop.done ]]; then
        rm -f "$run/failures"
        requeue "stopped and saved at step $after"
    elif [[ -e $stop.refused ]]; then
        status=2
        say "train.py refuses to run as configured, see above; the job is not queued again"
    elif ((status != 0)); then
        say_why "$status" "$(ends_of_tasks "$log" "$log_size")"
        ((after > before)) || failures=$(($(cat "$run/failures" 2>/dev/null || echo 0) + 1))
        echo "$failures" >"$run/failures"
        if ((failures < MAX_FAILURES)); then
            requeue "ended with status $status at step $after ($failures of $MAX_FAILURES lives without a new checkpoint)"
        else
            say "given up: $failures lives in a row ended without a checkpoint beyond step $after, this one with status" \
                "$status. Mend what the log names, then sbatch the same command again"
        fi
    fi
    exit "$status"
}
