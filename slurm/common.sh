# Functions shared by the scripts in this folder, which source this file. It is not a script for sbatch.
#
# Settings, which may be set in the environment: CONTAINER=image.sif sbatch slurm/train.sh ...
CONTAINER=${CONTAINER:-}            # empty: .venv of this folder, or the environment in which sbatch was called
                                    # FILE.sif: Apptainer; else pyxis (enroot): an image in a registry, or FILE.sqsh
CONTAINER_MOUNTS=${CONTAINER_MOUNTS:-}  # HOST:INSIDE,...; this folder is always mounted, and its code is run
SAVE_SECONDS=${SAVE_SECONDS:-120}   # training stops this long before the time limit, independently of --signal
MAX_FAILURES=${MAX_FAILURES:-3}     # the job ends after this many starts in a row that crash without a new checkpoint

# the id of this array element alone: Slurm interprets the plain id of an array's last element as the whole array
JOB=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID} JOB=${JOB:-$SLURM_JOB_ID}

say() { echo "$(date '+%F %T') $*"; }
die() { echo "error: $*" >&2; exit 2; }

option() { # KEY ARGUMENT...: prints the value of the last KEY=VALUE among the arguments
    local key=$1 value= argument
    for argument in "${@:2}"; do [[ $argument != "$key="* ]] || value=${argument#*=}; done
    echo "$value"
}

check_job() { # ARGUMENT...: checks that the job has the nodes and tasks that train.py needs
    [[ -e train.py ]] || die "no train.py in $PWD: call sbatch from the project's folder"
    local nodes
    nodes=$(option trainer.num_nodes "$@")
    [[ -z $nodes || $nodes == "$SLURM_JOB_NUM_NODES" ]] ||
        die "trainer.num_nodes=$nodes, but this job has $SLURM_JOB_NUM_NODES: request nodes from Slurm," \
            "sbatch --nodes=$nodes slurm/train.sh ${*}"
    [[ -n ${SLURM_NTASKS_PER_NODE:-} ]] ||
        die "request tasks with --ntasks-per-node=GPUS_PER_NODE --nodes=NODES, not with --ntasks"
    local gpus=${SLURM_GPUS_ON_NODE:-$SLURM_NTASKS_PER_NODE}
    ((gpus == SLURM_NTASKS_PER_NODE || gpus == 0)) ||
        die "expected one task per GPU, but this node has $gpus GPUs and $SLURM_NTASKS_PER_NODE tasks." \
            "Use --gpus-per-node=$gpus --ntasks-per-node=$gpus"
    [[ -z ${SLURM_GPUS_PER_TASK:-} ]] ||
        die "--gpus-per-task hides the node's other GPUs from each task, but NCCL needs them: use --gpus-per-node"
}

check_shared() { # FOLDER: checks that it is visible on every node
    ((SLURM_JOB_NUM_NODES > 1)) || return 0
    local token=$1/.seen_by_all.$SLURM_JOB_ID seen=0
    : >"$token"
    # shellcheck disable=SC2016
    srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 bash -c '[[ -e $0 ]] || {
        echo "error: $0 is not visible on node $(hostname). The run'\''s folder must be on a file system that all" \
            "nodes share: call sbatch from a folder there, or set run_dir=FOLDER" >&2
        exit 2
    }' "$token" || seen=$?
    rm -f "$token"
    ((seen != 2)) || exit 2 # any other status is a failure of Slurm, not a mistake of the user
}

launch() { # ARGUMENT...: runs python with the arguments, once per task
    local srun=(srun --kill-on-bad-exit=1) python=.venv/bin/python
    [[ -x $python ]] || python=python
    # Slurm does not pass on the number of CPUs; one thread per rank, since the ranks of a node share its cores
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

seconds_to_train() { # prints the seconds until SAVE_SECONDS before the time limit; nothing without a limit
    local end
    end=$(date -d "$(job EndTime)" +%s 2>/dev/null) && echo $((end - SAVE_SECONDS - $(date +%s)))
}

stop_before_the_end() { # FILE: creates it SAVE_SECONDS before the time limit, which may change in the meantime
    local left
    while left=$(seconds_to_train); do
        if ((left <= 0)); then touch "$1"; return; fi
        sleep $((left < 300 ? left : 300))
    done
}

newest_step() { # FOLDER: prints the step of its newest checkpoint; 0 without one
    local newest
    newest=$(cd "$1/checkpoints" 2>/dev/null && printf '%s\n' step_* | sed -n 's/^step_0*\([0-9]\+\)\(\.ckpt\)\?$/\1/p' | sort -n | tail -1)
    echo "${newest:-0}"
}

job_log() { # prints the file that this script and srun write to; nothing if they do not write to a file
    local file
    file=$(readlink -f "/proc/$$/fd/2") && [[ -f $file ]] && echo "$file"
}

size_of() { stat -c %s "$1" 2>/dev/null || echo 0; }

ends_of_tasks() { # FILE OFFSET: prints srun's messages on how tasks ended, in order: "node2: task 1: Killed"
    [[ -z $1 ]] || tail -c "+$(($2 + 1))" "$1" | tr '\r' '\n' | sed -n 's/^srun: error: \([^ :]*: tasks\? [0-9,-]*: .*\)/\1/p'
}

say_why() { # STATUS ENDS: explains them; STATUS may be that of the first task that ended, or of one that srun ended
    [[ -z $2 ]] || say "how the tasks ended, in order: ${2//$'\n'/; }"
    if (($1 == 137)) || grep -Eq ': (Killed|Out Of Memory)' <<<"$2"; then
        say "a rank was killed: by a user, or because memory ran out (use more --mem or fewer data.num_workers)"
    fi
    if (($1 == 70)) || grep -q ': Exited with exit code 70$' <<<"$2"; then
        say "a rank was stuck; the stacks of all ranks are printed above"
    fi
}

requeue() { # WHY
    say "$1: queueing job $JOB again"
    scontrol requeue "$JOB" || say "requeueing failed: repeat the sbatch command to continue from here"
}

train() { # ARGUMENT...: runs train.py with the arguments, and queues the job again if necessary
    local name run stop left python_run timer status before after log log_size failures=0
    name=$(option name "$@")
    if [[ -z $name ]]; then
        name=job_${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID} # the same at every restart of the job
    fi
    name+=${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID} # each element of an array has its own folder
    run=$(option run_dir "$@")
    run=${run:-runs/$name} stop=$run/stop
    check_job "$@"
    left=$(seconds_to_train) && ((left < SAVE_SECONDS)) &&
        die "--time leaves $((left > 0 ? left : 0)) s for training beside SAVE_SECONDS=$SAVE_SECONDS: request more time"
    mkdir -p "$run" || die "the run's folder $run cannot be created"
    rm -f "$stop" "$stop".*
    [[ ${SLURM_RESTART_COUNT:-0} != 0 ]] || rm -f "$run/failures"
    check_shared "$run"

    export AUDIO_DIFFUSION_STOP_FILE=$PWD/$stop # train.py saves and ends when this file exists
    [[ $stop != /* ]] || AUDIO_DIFFUSION_STOP_FILE=$stop
    # a port that is free on this node, where rank 0 runs; Lightning's depends only on the job's id
    export MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
    while (: <"/dev/tcp/127.0.0.1/$MASTER_PORT") 2>/dev/null; do MASTER_PORT=$((MASTER_PORT + 1)); done
    trap 'touch "$AUDIO_DIFFUSION_STOP_FILE"' USR1 TERM
    stop_before_the_end "$AUDIO_DIFFUSION_STOP_FILE" &
    timer=$!
    before=$(newest_step "$run")
    say "job $JOB, start $((${SLURM_RESTART_COUNT:-0} + 1)), on $SLURM_JOB_NODELIST: $run from step $before"

    log=$(job_log) log_size=$(size_of "$log")
    launch train.py "trainer.num_nodes=$SLURM_JOB_NUM_NODES" "trainer.devices=$SLURM_NTASKS_PER_NODE" "$@" "name=$name" &
    python_run=$!
    wait "$python_run"; status=$?
    while kill -0 "$python_run" 2>/dev/null; do wait "$python_run"; status=$?; done # a signal ends wait early
    kill "$timer" 2>/dev/null
    after=$(newest_step "$run")

    [[ $(job JobState) == RUNNING ]] || exit "$status" # cancelled, or queued again by Slurm itself
    if [[ -e $stop.done ]]; then
        rm -f "$run/failures"
        requeue "stopped and saved at step $after"
    elif [[ -e $stop.refused ]]; then
        status=2
        say "train.py does not run with this configuration, see above; the job is not queued again"
    elif ((status != 0)); then
        say_why "$status" "$(ends_of_tasks "$log" "$log_size")"
        ((after > before)) || failures=$(($(cat "$run/failures" 2>/dev/null || echo 0) + 1))
        echo "$failures" >"$run/failures"
        if ((failures < MAX_FAILURES)); then
            requeue "ended with status $status at step $after ($failures of $MAX_FAILURES starts without a new checkpoint)"
        else
            say "given up: $failures starts in a row ended without a checkpoint after step $after, this one with status" \
                "$status. Correct the error in the log, then repeat the sbatch command"
        fi
    fi
    exit "$status"
}
