#!/usr/bin/env bash
# An MLflow tracking server of this machine. Runs until interrupted; the same command goes on where it was.
#
#   cluster/mlflow.sh /data/mlflow                     # SQLite for runs and metrics, a folder for artifacts
#   cluster/mlflow.sh --postgres /data/mlflow          # a PostgreSQL of its own in the folder (Debian: postgresql)
#   tracking: {mlflow: "http://127.0.0.1:5000"}        # in the sweep file
#
# From the environment:
#   MLFLOW_BACKEND_STORE_URI=postgresql://...          a database that runs already, instead of --postgres
#   MLFLOW_ARTIFACTS_DESTINATION=s3://bucket/mlflow    artifacts in a bucket: boto3, AWS_..., MLFLOW_S3_ENDPOINT_URL
#   MLFLOW_AUTH_ADMIN_PASSWORD=...                     asks who they are: user admin, then those that it makes (Flask-WTF)
#   MLFLOW_WORKERS=4                                   processes that answer; with SQLite one
#
# It listens on this machine only. Other nodes reach it through a tunnel, or a proxy that encrypts and lets bodies of
# 100 MB pass. The folder lies on a local disk: databases and network file systems do not go together.
set -euo pipefail

postgres=
if [ "${1:-}" = --postgres ]; then postgres=yes; shift; fi
folder=${1:?usage: cluster/mlflow.sh [--postgres] FOLDER [port]}
port=${2:-5000}
mkdir -p -- "$folder"
folder=$(cd -- "$folder" && pwd)
database=$folder/postgres

# PostgreSQL does not run as root; whoever starts this is its administrator, through a socket in its folder alone.
as_postgres() {
  if [ "$(id -u)" = 0 ]; then runuser -u postgres -- "$@"; else "$@"; fi
}

start_postgres() {
  local bin
  bin=$(command -v initdb || ls /usr/lib/postgresql/*/bin/initdb | sort -V | tail -n 1)
  bin=$(dirname -- "$(readlink -f -- "$bin")")
  pg_ctl=$bin/pg_ctl
  if [ ! -e "$database/PG_VERSION" ]; then
    mkdir -p -- "$database"
    if [ "$(id -u)" = 0 ]; then chown postgres: "$database"; fi
    as_postgres "$bin/initdb" --pgdata="$database" --username="$(id -un)" --auth=peer --encoding=UTF8 --locale=C >&2
  fi
  as_postgres "$pg_ctl" --pgdata="$database" status >&2 || as_postgres "$pg_ctl" --pgdata="$database" --wait \
    --log="$database/log" --options="-c unix_socket_directories='$database' -c listen_addresses=''" start >&2
  "$bin/psql" --host="$database" --dbname=postgres --tuples-only --command="select 1 from pg_database where datname = 'mlflow'" \
    | grep -q 1 || "$bin/createdb" --host="$database" mlflow
  export MLFLOW_BACKEND_STORE_URI="postgresql:///mlflow?host=$database"
}

options=(--host=127.0.0.1 --port="$port" --serve-artifacts)
server= pg_ctl=
finish() {
  if [ -n "$server" ]; then kill "$server" 2>/dev/null || true; wait "$server" || true; fi
  if [ -n "$pg_ctl" ]; then as_postgres "$pg_ctl" --pgdata="$database" --mode=fast stop >&2 || true; fi
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

if [ -n "$postgres" ]; then start_postgres; fi
export MLFLOW_BACKEND_STORE_URI=${MLFLOW_BACKEND_STORE_URI:-sqlite:///$folder/mlflow.db}
export MLFLOW_ARTIFACTS_DESTINATION=${MLFLOW_ARTIFACTS_DESTINATION:-$folder/artifacts}
export MLFLOW_WORKERS=${MLFLOW_WORKERS:-1}

if [ -n "${MLFLOW_AUTH_ADMIN_PASSWORD:-}" ]; then
  umask 077
  # What cookies are signed with stays the same, so that a restart logs nobody out.
  [ -s "$folder/secret-key" ] || head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' > "$folder/secret-key"
  MLFLOW_FLASK_SERVER_SECRET_KEY=$(cat "$folder/secret-key")
  logins=${MLFLOW_BACKEND_STORE_URI/%mlflow.db/logins.db}
  cat > "$folder/auth.ini" <<INI
[mlflow]
default_permission = READ
database_uri = ${logins//%/%%}
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
INI
  export MLFLOW_FLASK_SERVER_SECRET_KEY MLFLOW_AUTH_CONFIG_PATH=$folder/auth.ini
  options+=(--app-name=basic-auth)
fi

export MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
python -m mlflow server "${options[@]}" &
server=$!
wait "$server"
