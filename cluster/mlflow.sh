#!/usr/bin/env bash
# An MLflow tracking server of this machine: SQLite for runs and metrics, a folder for artifacts. Runs until interrupted.
#
#   cluster/mlflow.sh /data/mlflow
#   tracking: {mlflow: "http://127.0.0.1:5000"}   # in the sweep file
#
# It listens on this machine only and asks nobody who they are. Other nodes reach it through a tunnel, or behind a
# proxy that asks. The folder lies on a local disk: SQLite and network file systems do not go together.
set -euo pipefail

folder=${1:?usage: cluster/mlflow.sh FOLDER [port]}
port=${2:-5000}
mkdir -p -- "$folder/artifacts"
folder=$(cd -- "$folder" && pwd)

export MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
exec python -m mlflow server \
  --host=127.0.0.1 --port="$port" --workers=1 \
  --backend-store-uri="sqlite:///$folder/mlflow.db" \
  --serve-artifacts --artifacts-destination="$folder/artifacts"
