#!/usr/bin/env bash
#SBATCH --job-name=massive-sft
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
# Ray on the nodes of a Slurm allocation, and one sweep on it. Before the time is up, or when the run says that it may
# get further by itself (exit 75), the job goes back into the queue and goes on from there.
#
#   sbatch cluster/slurm.sh sweeps/x.yaml [--overlay ...]
#
# Run from the repository; the repository, its .venv and storage.root lie on a file system that all nodes see. Ray's
# folder is $RAY_TMPDIR, else /tmp, of each node: a short path on a local disk. RESTARTS limits the times in the queue.
set -euo pipefail

(($# > 0)) || { echo "usage: sbatch cluster/slurm.sh SWEEP [options of massive-sft run]" >&2; exit 2; }

# shellcheck disable=SC1091
. .venv/bin/activate
unset RAY_ADDRESS
export RAY_AUTH_MODE=token # nodes may be shared; the token is in the home folder, which all nodes see
ray get-auth-token --generate >/dev/null
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 # nodes end once the run has: nothing on them is to be waited for
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

# Ten ports for each job, below those that systems give away: two jobs may share a node.
export RAY_BASE_PORT=$((20000 + SLURM_JOB_ID % 1000 * 10))
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}

# The head's address as the last node sees it: a name may stand for 127.0.0.1 on the machine that has it.
head_name=$(scontrol show node "$head" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
step=(--nodes=1 --ntasks=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" --overlap)
# shellcheck disable=SC2016
seen=$(srun "${step[@]}" --nodelist="${nodes[-1]}" bash -c \
  'getent ahostsv4 "$1" | awk "{print \$1; exit}"; hostname' - "$head_name")
head_ip=${seen%%$'\n'*}
if [[ $head_ip == 127.* && ${#nodes[@]} -gt 1 && ${seen##*$'\n'} != "$(hostname)" ]]; then
  echo "$head_name, the address of $head, is $head_ip on ${nodes[-1]}: other nodes cannot reach it" >&2
  exit 2
fi
export RAY_HEAD="$head_ip:$RAY_BASE_PORT"

# One node of Ray, with a folder of its own, which goes with it. The first argument sets the nodes' ports apart.
# shellcheck disable=SC2016
node='
agent_port=$((RAY_BASE_PORT + $1 + SLURM_PROCID % 6))
shift
folder="${RAY_TMPDIR:-/tmp}/ray-$SLURM_JOB_ID-${SLURMD_NODENAME:-0}"
ray start --block --disable-usage-stats --temp-dir="$folder" \
  --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" \
  --min-worker-port=0 --max-worker-port=0 \
  --dashboard-agent-listen-port="$agent_port" "$@" &
trap "kill $!" TERM
wait $! || wait $! || true # a signal ends the first wait, not Ray
rm -rf -- "$folder"
'

state() {
  scontrol show job "$SLURM_JOB_ID" | sed -n 's/.*JobState=\([A-Z_]*\).*/\1/p'
}

# End Ray on all nodes: by a signal to the steps, not to srun, which would kill them. Where the job is ending already,
# Slurm has sent one, and takes no other.
stop() {
  trap '' TERM INT
  [[ $(state) != RUNNING ]] || scancel --signal=TERM "$SLURM_JOB_ID" || true
  wait || true
}
trap stop EXIT

# End with an exit code. 75, and a signal but Ctrl-C, say that another time may get further. Who cancels the job, or puts it back into the queue,
# has decided already: then it is no longer RUNNING.
leave() {
  stop
  if (($1 == 75 || $1 > 130)) && [[ $(state) == RUNNING ]] && ((${SLURM_RESTART_COUNT:-0} < ${RESTARTS:-20})); then
    echo "exit $1: back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
  fi
  exit "$1"
}
trap 'leave 75' TERM INT

srun "${step[@]}" --nodelist="$head" bash -c "$node" - 3 \
  --head --node-ip-address="$head_ip" --port="$RAY_BASE_PORT" --ray-client-server-port=$((RAY_BASE_PORT + 1)) \
  --dashboard-host=127.0.0.1 --dashboard-port=$((RAY_BASE_PORT + 2)) &
head_step=$!

# Ray gives a node 30 seconds to start, which a busy one may not keep: then another time may.
require_head() {
  kill -0 "$head_step" 2>/dev/null || { echo "Ray's head on $head has ended before the run began" >&2; leave 75; }
}

for ((tries = 0; ; tries++)); do
  require_head
  ray health-check --address="$RAY_HEAD" >/dev/null 2>&1 && break
  ((tries < 60)) || { echo "no Ray head on $head after 60 tries" >&2; leave 75; }
  sleep 2
done

if ((${#nodes[@]} > 1)); then
  others=$(IFS=,; echo "${nodes[*]:1}")
  count=$((${#nodes[@]} - 1))
  srun --nodes="$count" --ntasks="$count" --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    --nodelist="$others" --overlap bash -c "$node" - 4 --address="$RAY_HEAD" &
fi

# The run starts with the nodes that are there, so it waits until all are.
wanted=${#nodes[@]}
for ((tries = 0; ; tries++)); do
  require_head
  there=$(RAY_ADDRESS="$RAY_HEAD" python -c \
    'import ray; ray.init(logging_level="ERROR"); print(sum(n["Alive"] for n in ray.nodes()))') || there=0
  ((there >= wanted)) && break
  ((tries < 60)) || { echo "$there of $wanted nodes joined after 60 tries" >&2; leave 75; }
  sleep 2
done

# In the background, so that Slurm's signal before the time limit reaches this script; with job control, because bash
# lets background commands ignore interrupts without it.
set -m
RAY_ADDRESS="$RAY_HEAD" massive-sft run "$@" &
run=$!
trap 'kill -TERM "$run" 2>/dev/null || true' INT TERM
code=0
wait "$run" || code=$?
while kill -0 "$run" 2>/dev/null; do # a signal ended the wait, not the run
  code=0
  wait "$run" || code=$?
done
leave "$code"
