#!/usr/bin/env bash
# A run on Cloud TPU VMs, by a queued resource: asks for the slices, waits, sets up all hosts, runs a
# command on all of them until it is done. When the slices are taken away (spot) or fail, it asks
# again and the same command resumes. From any machine with gcloud, logged in:
#
#   export PROJECT=my-project ZONE=us-east5-a NAME=stage2 TYPE=v5p-128 BUCKET=my-bucket SPOT=yes
#   bash launch/run_pod.sh run --delete python -m ba_jax.train --config=configs/lm_stage2.py:7b \
#       --workdir=/mnt/my-bucket/runs/stage2 --distributed
#   bash launch/run_pod.sh create           asks, waits, copies the tree, sets up: no run
#   bash launch/run_pod.sh status           the resource, and the newest lines of each host's log
#   bash launch/run_pod.sh stop             the run saves and ends on all hosts; they stay
#   bash launch/run_pod.sh delete           the hosts go; the bucket stays
#   bash launch/run_pod.sh SUBCOMMAND --dry-run ...     prints every command; no gcloud needed
#
#   NAME, PROJECT, ZONE, BUCKET     needed; MOUNT=/mnt/BUCKET, see setup_tpu.sh
#   TYPE=v5litepod-256              accelerator type: v4-*, v5litepod-*, v5p-*, v6e-*; needed but for
#                                   status, stop and delete
#   SLICES=1                        more than 1: multi-slice, mesh.replica=SLICES in the config
#   SPOT=no                         yes: cheaper, may be taken away
#   RUNTIME                         TPU software version; by TYPE as Google's table says
#   CREATE_FLAGS='--internal-ips'   more words for `queued-resources create` (--reserved, --network)
#   SSH_FLAGS='--internal-ip'       more words for `queued-resources ssh` and `scp`
#   POLL=30 FAILURES=10             seconds between two looks; failed requests in a row before it ends
#   RESTARTS, DELAY                 restart.sh's, on the hosts
#
# The command runs on the hosts under on_host.sh and restart.sh: a crash or a lost process is
# restarted there, and a broken connection or a Ctrl-C here ends nothing; `run` with the same command
# shows it again. `run --delete` deletes the hosts once the command has ended, however it did: done,
# stopped or failed. Exit codes of `run`: 0 done; 75 stopped; others as restart.sh's.
# gcloud reaches several hosts by your SSH agent: run ssh-add ~/.ssh/google_compute_engine first.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
. "$root/launch/common.sh"

subcommand "run, create, status, stop or delete" "$@"
shift
dry='' delete=''
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry=yes ;;
    --delete) delete=yes ;;
    -*) fail "$1: expected --delete or --dry-run before the command" ;;
    *) break ;;
  esac
  shift
done
takes_command "$@"
[ "$what" = run ] || [ -z "$delete" ] || fail "--delete: expected with run alone"

need NAME "a name for the queued resource and its nodes"
need PROJECT "a Google Cloud project"
need ZONE "a zone with TPUs, e.g. us-east5-a"
: "${SLICES:=1}" "${POLL:=30}" "${FAILURES:=10}"
whole_number SLICES "$SLICES" 1
whole_number POLL "$POLL" 0
whole_number FAILURES "$FAILURES" 1
spot=()
case ${SPOT:-no} in
  yes) spot=(--spot) ;;
  no) ;;
  *) fail "SPOT=$SPOT: expected yes or no" ;;
esac
if [ "$what" = run ] || [ "$what" = create ]; then
  need TYPE "an accelerator type, e.g. v5p-128"
  need BUCKET "the name of a bucket"
  case $TYPE in
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    v4-* | v3-* | v2-*) runtime=tpu-ubuntu2204-base ;;
    tpu7x*) fail "TYPE=$TYPE: TPU7x is on GKE alone; use xpk.sh" ;;
    *) runtime=${RUNTIME:-} ;;
  esac
  runtime=${RUNTIME:-$runtime}
  [ -n "$runtime" ] || fail "TYPE=$TYPE is unknown here: set RUNTIME, its TPU software version"
fi
# shellcheck disable=SC2153 # NAME is a setting
nodes=(--node-id="$NAME")
[ "$SLICES" = 1 ] || nodes=(--node-count="$SLICES" --node-prefix="$NAME")
read -ra create_flags <<<"${CREATE_FLAGS:-}"
read -ra ssh_flags <<<"${SSH_FLAGS:-}"
place=(--zone="$ZONE" --project="$PROJECT")
# All at once: hosts wait for each other, and the default is groups of 64.
everywhere=(--node=all --worker=all --batch-size=all)
resources=(gcloud compute tpus queued-resources)
archive=$root/.cache/ba_jax.tar.gz
ended='bash ba_jax/launch/on_host.sh --ended'

describe=("${resources[@]}" describe "$NAME" "${place[@]}" "--format=value(state.state)")
request() {
  run "${resources[@]}" create "$NAME" "${place[@]}" --accelerator-type="$TYPE" \
    --runtime-version="$runtime" "${nodes[@]}" "${spot[@]}" "${create_flags[@]}"
}
remove() {
  run "${resources[@]}" delete "$NAME" "${place[@]}" --force --quiet
}
on_hosts() { # COMMAND: one line, for the hosts' shell
  # A host that is gone does not close its connection: it is noticed after three silent intervals.
  run "${resources[@]}" ssh "$NAME" "${place[@]}" "${everywhere[@]}" "${ssh_flags[@]}" \
    --ssh-flag=-oServerAliveInterval=30 --command="$1"
}

# Sets state: as the API has it, MISSING, or UNKNOWN where gcloud could not find out.
ask() {
  local answer
  if answer=$("${describe[@]}" 2>&1); then
    state=${answer##*$'\n'}
  elif [[ $answer == *NOT_FOUND* || $answer == *"not found"* ]]; then
    state=MISSING
  else
    state=UNKNOWN
    say "$answer"
  fi
}

ensure_active() {
  local failures=0 last=''
  if [ -n "$dry" ]; then
    echo "# every $POLL s, until it is ACTIVE"
    run "${describe[@]}"
    echo "# if it is MISSING"
    request
    echo "# if it is FAILED, SUSPENDED or PREEMPTED, before it is asked for again"
    remove
    return
  fi
  while :; do
    ask
    [ "$state" = "$last" ] || say "$NAME is $state"
    last=$state
    case $state in
      ACTIVE) return ;;
      MISSING) request || failures=$((failures + 1)) ;;
      FAILED | SUSPENDED | PREEMPTED)
        [ "$state" != FAILED ] || failures=$((failures + 1))
        remove || failures=$((failures + 1))
        ;;
    esac
    if [ "$failures" -ge "$FAILURES" ]; then
      say "$failures requests failed; see gcloud's messages: quota, TYPE, ZONE, RUNTIME"
      exit 1
    fi
    sleep "$POLL"
  done
}

set_up() { # copies the tree, installs, mounts
  local settings=(BUCKET="$BUCKET")
  [ -z "${MOUNT:-}" ] || settings+=(MOUNT="$MOUNT")
  [ -z "$dry" ] || echo "# tree and setup"
  pack "$archive" || return
  run "${resources[@]}" scp "$archive" "$NAME:ba_jax.tar.gz" "${place[@]}" "${everywhere[@]}" \
    "${ssh_flags[@]}" || return
  # A host on which the command runs, as this script was started again, is left alone.
  on_hosts "if [ -e ba_jax/launch/on_host.sh ] && ! $ended; then exit; fi; mkdir -p ba_jax && \
tar -xzf ba_jax.tar.gz -C ba_jax && $(quoted env "${settings[@]}" bash ba_jax/launch/setup_tpu.sh)"
}

follow() { # COMMAND...: runs it on all hosts, or attaches to it; sets code
  local settings=(RESTARTS="${RESTARTS:-5}" DELAY="${DELAY:-10}")
  code=0
  on_hosts "cd ba_jax && $(quoted env "${settings[@]}" bash launch/on_host.sh "$@")" || code=$?
}

supervise() { # COMMAND...: until it has ended on the hosts; sets code
  local ready='' reached='' tries=0
  while [ "$tries" -lt "$FAILURES" ]; do
    if [ -z "$ready" ]; then
      ensure_active
      # Hosts may go while they are set up.
      if set_up; then ready=yes reached=yes; else say "setup failed"; fi
    fi
    code=255
    if [ -n "$ready" ]; then
      [ -z "$dry" ] || echo "# the run, on each host under restart.sh"
      follow "$@"
      [ "$code" -ne 0 ] || return 0
    fi
    # The command's code, or that of a connection, or of gcloud, as hosts are gone?
    while ask && [ "$state" = ACTIVE ] && ! on_hosts true; do
      say "$NAME is ACTIVE, but not all hosts answer"
      [ -n "$reached" ] || tries=$((tries + 1))
      [ "$tries" -lt "$FAILURES" ] || break
      sleep "$POLL"
    done
    if [ "$state" != ACTIVE ]; then
      say "$NAME is $state: it is asked for again, and the run resumes"
      ready='' tries=0
    elif [ "$code" -ne 255 ] && [ "$code" -ne 76 ] && on_hosts "$ended"; then
      return 0
    else
      tries=$((tries + 1))
      sleep "$POLL"
    fi
  done
  say "failed $tries times in a row on hosts that are there"
  code=1
}

case $what in
  create)
    ensure_active
    set_up
    ;;
  status)
    run "${resources[@]}" describe "$NAME" "${place[@]}"
    on_hosts 'hostname; tail -n 3 .ba_jax_run/log'
    ;;
  stop) on_hosts 'bash ba_jax/launch/on_host.sh --stop' ;;
  delete) remove ;;
  run)
    trap 'say "the hosts continue; run shows it again, stop ends it"; exit 130' INT TERM
    code=0
    supervise "$@"
    trap - INT TERM
    if [ -n "$delete" ]; then
      [ -z "$dry" ] || echo "# at the end"
      remove
    fi
    exit "$code"
    ;;
esac
