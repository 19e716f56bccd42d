#!/usr/bin/env bash
# One search on nodes that Slurm gives: sbatch cluster/slurm.sh space=stage_order pair=tiny data=digits storage=...
# Submitted from the checkout, on a file system that all nodes share: store and results are in runs/ there. The study is
# on a PostgreSQL server, storage=postgresql+psycopg://user@host/database, with its password in ~/.pgpass.
# To go on after anything that ended it (the time limit, say), submit the same line again.
#SBATCH --job-name=smskd
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?run me with sbatch}"
export PATH="$PWD/.venv/bin:$PATH" RAY_USAGE_STATS_ENABLED=0

# a secret of this job, which all its nodes ask for
RAY_AUTH_TOKEN="$(python -c 'import secrets; print(secrets.token_hex(32))')"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN

head="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)"
port=$((20000 + SLURM_JOB_ID % 20000))
cores="${SLURM_CPUS_ON_NODE:?}"
gpus="${SLURM_GPUS_ON_NODE:-0}"

# one task a node: the head's node starts Ray's head, the others join it
srun --ntasks="$SLURM_NNODES" --ntasks-per-node=1 --kill-on-bad-exit=0 bash -c '
  if [ "$SLURM_PROCID" = 0 ]; then
    exec ray start --block --head --port="$1" --num-cpus="$2" --num-gpus="$3" --include-dashboard=false
  fi
  sleep 10
  exec ray start --block --address="$0:$1" --num-cpus="$2" --num-gpus="$3"
' "$head" "$port" "$cores" "$gpus" &
nodes=$!
trap 'kill "$nodes" 2>/dev/null || true; wait "$nodes" 2>/dev/null || true' EXIT
for _ in $(seq 60); do  # this script runs on the first node, that of the head
  ray status --address="$head:$port" >/dev/null 2>&1 && break
  sleep 2
done

# in the background, so that the signal which Slurm sends before the time limit is passed on: the search saves, and ends
python -m search.run address="$head:$port" "$@" &
search=$!
trap 'kill "$search" 2>/dev/null || true' TERM
code=0
wait "$search" || code=$?
if kill -0 "$search" 2>/dev/null; then wait "$search" || code=$?; fi
exit "$code"
