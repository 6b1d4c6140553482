#!/usr/bin/env bash
#SBATCH --job-name=ba_jax
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR2@300
# A run on a SLURM cluster of GPU or CPU nodes, until it is done: through time limits, node failures
# and crashes. From the tree, which all nodes see, with its .venv (pip install -e .[cuda]):
#
#   sbatch --nodes=4 --gpus-per-node=8 --exclusive --time=24:00:00 launch/slurm.sh \
#       python -m ba_jax.train --config=configs/lm_stage2.py:7b --workdir=DIR --distributed
#   bash launch/slurm.sh --dry-run COMMAND...     prints what a job would run; no SLURM needed
#
# sbatch's own flags say how many nodes, how long, which partition; they win over those above.
#
#   PROCESSES=gpu    one process a GPU: what JAX takes a SLURM task for (a node's task I gets GPU I)
#   PROCESSES=node   one process a node, with all of its GPUs (by JAX_LOCAL_DEVICE_IDS)
#   RESTARTS, DELAY  restart.sh's
#
# Without GPUs it is one process a node, on the CPU. 300 s before the time limit SLURM sends USR2 to
# this script alone, which has SLURM send SIGTERM to the run's processes (srun itself would kill
# them); when all have saved, the job is put into the queue again under its number. A node that fails
# has SLURM do the same. scancel ends it.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[ -z "${SLURM_JOB_ID:-}" ] || root=${SLURM_SUBMIT_DIR:-$PWD} # SLURM runs a copy of this file
if [ ! -e "$root/launch/common.sh" ]; then
  echo "launch/slurm.sh: $root: expected the tree; submit from its top folder" >&2
  exit 2
fi
# shellcheck source=launch/common.sh
. "$root/launch/common.sh"

dry=''
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry=yes ;;
    -h | --help) usage && exit ;;
    -*) fail "$1: expected --dry-run before the command" ;;
    *) break ;;
  esac
  shift
done
[ $# -gt 0 ] || fail "no command (--help explains)"
[ -n "$dry" ] || [ -n "${SLURM_JOB_ID:-}" ] || fail "not in a job: use sbatch, or --dry-run"

nodes=${SLURM_JOB_NUM_NODES:-1} gpus=${SLURM_GPUS_ON_NODE:-0}
whole_number SLURM_JOB_NUM_NODES "$nodes" 1
whole_number SLURM_GPUS_ON_NODE "$gpus" 0
environment=()
each=1 # processes of a node
case ${PROCESSES:-gpu} in
  gpu) [ "$gpus" -eq 0 ] || each=$gpus ;;
  node)
    [ "$gpus" -eq 0 ] ||
      environment+=("JAX_LOCAL_DEVICE_IDS=$(seq -s , 0 "$((gpus - 1))")")
    ;;
  *) fail "PROCESSES=$PROCESSES: expected gpu or node" ;;
esac
[ "$gpus" -gt 0 ] || environment+=(JAX_PLATFORMS=cpu)

# A task sees all GPUs of its node and picks its own; it has all cores, for its loader's workers.
# When a process fails, the others notice and end by themselves, with a code that says whether a
# restart helps. --wait ends those that do not.
step=(srun --nodes="$nodes" --ntasks="$((nodes * each))" --ntasks-per-node="$each"
  --overcommit --gpu-bind=none --cpu-bind=none --kill-on-bad-exit=0 --wait=600 --label)
[ ${#environment[@]} -eq 0 ] || step+=(env "${environment[@]}")
step+=(bash "$root/launch/restart.sh" --once) # srun gives the highest code of all
loop=(bash "$root/launch/restart.sh" --restarts="${RESTARTS:-5}" --delay="${DELAY:-30}"
  --stop="scancel --signal=TERM ${SLURM_JOB_ID:-JOB}")
if [ -n "$dry" ]; then
  "${loop[@]}" --dry-run "${step[@]}" "$@"
  echo "# by the time limit, and not done"
  run scontrol requeue "${SLURM_JOB_ID:-JOB}"
  exit
fi

cd "$root"
requeue='' child=''
# shellcheck disable=SC2329 # by trap
to_loop() {
  [ -z "$child" ] || kill -s TERM "$child" 2>/dev/null || true
}
trap 'requeue=yes; to_loop' USR2
trap 'requeue=; to_loop' TERM
"${loop[@]}" "${step[@]}" "$@" &
child=$!
while kill -0 "$child" 2>/dev/null; do
  wait "$child" || true # a signal ends the wait
done
code=0
wait "$child" || code=$?
if [ "$code" -eq 75 ] && [ -n "$requeue" ]; then
  say "time is up; back into the queue"
  exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
