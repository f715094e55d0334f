#!/usr/bin/env bash
# A Ray cluster of this machine alone, with a dashboard that only this machine sees. Runs until interrupted.
#
#   . .venv/bin/activate
#   RUNS=/data/runs cluster/single-node.sh
#   RAY_AUTH_MODE=token massive-sft submit sweeps/x.yaml    # from another terminal
#
# Jobs get the environment of this script: export ${NAME}s of sweep files here, and tokens if a hub model needs one.
set -euo pipefail

: "${RUNS:?set RUNS to the folder that results go to}"
export RUNS
mkdir -p -- "$RUNS"
command -v massive-sft >/dev/null || { echo "massive-sft is not on PATH: activate its environment" >&2; exit 2; }

# RAY_ADDRESS would make the head look for another cluster.
unset RAY_ADDRESS

# Some of Ray's ports listen on every interface, and who may use them runs code as you: so they ask for a token, which
# Ray keeps in ~/.ray/auth_token. Clients need RAY_AUTH_MODE=token too.
export RAY_AUTH_MODE=token
ray get-auth-token --generate >/dev/null

# `job --stop`: SIGKILL follows SIGTERM after so many seconds; 3 without this, too few for a checkpoint.
export RAY_JOB_STOP_WAIT_TIME_S="${RAY_JOB_STOP_WAIT_TIME_S:-600}"

# Ray gives its node 30 seconds to start, which a busy machine may not keep, and has no setting for that: then once more.
said=$(mktemp)
trap 'rm -f -- "$said"' EXIT
trap 'kill -TERM "$!" 2>/dev/null || true' TERM INT
for _ in 1 2 3; do
  ray start --head --block \
    --dashboard-host=127.0.0.1 --dashboard-port="${DASHBOARD_PORT:-8265}" \
    --disable-usage-stats "$@" 2> >(tee -- "$said" >&2) &
  head=$!
  code=0
  wait "$head" || code=$?
  while kill -0 "$head" 2>/dev/null; do # a signal ended the wait, not Ray
    code=0
    wait "$head" || code=$?
  done
  sleep 0.2 # for what it said to be read
  grep -q "timed out during startup" "$said" || break
done
exit "$code"
