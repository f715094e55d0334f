#!/usr/bin/env bash
#SBATCH --job-name=massive-sft
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
# Ray on the nodes of a Slurm allocation, and one sweep on it. When the time is up, submit again: it goes on.
#
#   sbatch cluster/slurm.sh sweeps/x.yaml [--overlay ...]
#
# Run from the repository; the repository, its .venv and storage.root lie on a file system that all nodes see.
set -euo pipefail

(($# > 0)) || { echo "usage: sbatch cluster/slurm.sh SWEEP [options of massive-sft run]" >&2; exit 2; }

# shellcheck disable=SC1091
. .venv/bin/activate
unset RAY_ADDRESS
export RAY_AUTH_MODE=token # nodes may be shared; the token is in the home folder, which all nodes see
ray get-auth-token --generate >/dev/null
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

port=$((20000 + SLURM_JOB_ID % 10000)) # two jobs may share a node
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
head_ip=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')
size=(--num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}")

pids=()
stop() {
  kill "${pids[@]}" 2>/dev/null || true
  wait || true
}
trap stop EXIT

srun --nodes=1 --ntasks=1 --nodelist="$head" --overlap \
  ray start --head --block --node-ip-address="$head_ip" --port="$port" \
  --dashboard-host=127.0.0.1 --disable-usage-stats "${size[@]}" &
pids+=($!)

for ((tries = 0; ; tries++)); do
  ray health-check --address="$head_ip:$port" >/dev/null 2>&1 && break
  ((tries < 60)) || { echo "no Ray head on $head after 60 tries" >&2; exit 1; }
  sleep 2
done

if ((${#nodes[@]} > 1)); then
  others=$(IFS=,; echo "${nodes[*]:1}")
  count=$((${#nodes[@]} - 1))
  srun --nodes="$count" --ntasks="$count" --ntasks-per-node=1 --nodelist="$others" --overlap \
    ray start --block --address="$head_ip:$port" --disable-usage-stats "${size[@]}" &
  pids+=($!)
fi

# The run starts with the nodes that are there, so it waits until all are.
wanted=${#nodes[@]}
for ((tries = 0; ; tries++)); do
  there=$(RAY_ADDRESS="$head_ip:$port" python -c \
    'import ray; ray.init(logging_level="ERROR"); print(sum(n["Alive"] for n in ray.nodes()))') || there=0
  ((there >= wanted)) && break
  ((tries < 60)) || { echo "$there of $wanted nodes joined after 60 tries" >&2; exit 1; }
  sleep 2
done

# In the background, so that Slurm's signal before the time limit reaches this script; with job control, because bash
# lets background commands ignore interrupts without it.
set -m
RAY_ADDRESS="$head_ip:$port" massive-sft run "$@" &
run=$!
trap 'kill -INT "$run" 2>/dev/null || true' INT TERM
code=0
wait "$run" || code=$?
while kill -0 "$run" 2>/dev/null; do # a signal ended the wait, not the run
  code=0
  wait "$run" || code=$?
done
exit "$code"
