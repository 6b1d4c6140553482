#!/usr/bin/env bash
# A run on TPU slices of a GKE cluster, by xpk (pip install xpk; needs gcloud, kubectl and docker).
#
#   export PROJECT=my-project ZONE=us-east5-a CLUSTER=my-cluster NAME=stage2 TYPE=v6e-256
#   BUCKET=my-bucket bash launch/xpk.sh attach        once a cluster: the bucket as a folder of pods
#   STORAGE=my-bucket bash launch/xpk.sh run python -m ba_jax.train \
#       --config=configs/lm_stage2.py:7b --workdir=/mnt/my-bucket/runs/stage2 --distributed
#   bash launch/xpk.sh status
#   bash launch/xpk.sh delete                         SIGTERM first: the run saves
#   bash launch/xpk.sh SUBCOMMAND --dry-run ...       prints every command; no xpk needed
#
#   NAME, CLUSTER, PROJECT, ZONE   needed; NAME is the workload's
#   TYPE=v5litepod-256             --tpu-type; needed by run. SLICES=1 of them
#   STORAGE=NAME                   needed by run: what attach has attached (its name is BUCKET's)
#   BUCKET, MOUNT=/mnt/BUCKET      of attach
#   BASE_IMAGE=python:3.11         xpk adds this tree to it; setup_tpu.sh installs when a pod starts
#   IMAGE=...                      instead: an image that has this tree and its packages, in its
#                                  working folder (pods start sooner)
#   RESTARTS=50                    of all pods, when one is lost; those inside a pod are restart.sh's
#   GRACE=300                      seconds that a pod has to save when it is taken away
#   XPK_FLAGS='--priority=high'    more words for `xpk workload create`
#
# Each pod runs restart.sh. A pod that is lost, or told to go, makes xpk start all of them again
# (code 75, or more than 128), and the run resumes; codes 1 and 2 end it: see the pods' logs.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
. "$root/launch/common.sh"

subcommand "attach, run, status or delete" "$@"
shift
dry=''
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry=yes ;;
    -*) fail "$1: expected --dry-run before the command" ;;
    *) break ;;
  esac
  shift
done
takes_command "$@"

need CLUSTER "a cluster that xpk made"
need PROJECT "a Google Cloud project"
need ZONE "the cluster's zone"
place=(--cluster="$CLUSTER" --project="$PROJECT" --zone="$ZONE")
if [ "$what" != attach ]; then
  need NAME "a name for the workload"
  # shellcheck disable=SC2153 # NAME is a setting
  [[ $NAME =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ && ${#NAME} -le 40 ]] ||
    fail "NAME=$NAME: expected at most 40 of a-z, 0-9 and -, a letter first"
fi

case $what in
  attach)
    need BUCKET "the name of a bucket"
    run xpk storage attach "$BUCKET" "${place[@]}" --type=gcsfuse --bucket="$BUCKET" \
      --mount-point="${MOUNT:-/mnt/$BUCKET}" --readonly=false --auto-mount=false --size=1 \
      --mount-options=implicit-dirs,rename-dir-limit=200000,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0
    ;;
  run)
    need TYPE "a TPU type, e.g. v6e-256"
    need STORAGE "what \`xpk storage attach\` attached"
    : "${SLICES:=1}" "${RESTARTS:=50}" "${GRACE:=300}"
    whole_number SLICES "$SLICES" 1
    whole_number RESTARTS "$RESTARTS" 0
    whole_number GRACE "$GRACE" 0
    [ -z "${IMAGE:-}" ] || [ -z "${BASE_IMAGE:-}" ] || fail "IMAGE and BASE_IMAGE: expected one"
    # exec: the signal that a pod gets goes to its first process.
    command="exec $(quoted bash launch/restart.sh "$@")"
    if [ -n "${IMAGE:-}" ]; then
      image=(--docker-image="$IMAGE")
    else
      tree=$root/.cache/tree
      pack "$tree.tar.gz"
      run rm -rf "$tree"
      run mkdir "$tree"
      run tar -xzf "$tree.tar.gz" -C "$tree"
      image=(--base-docker-image="${BASE_IMAGE:-python:3.11}" --script-dir="$tree")
      command="bash launch/setup_tpu.sh --no-mount --no-check && $command"
    fi
    read -ra more <<<"${XPK_FLAGS:-}"
    run xpk workload create --workload="$NAME" "${place[@]}" --tpu-type="$TYPE" \
      --num-slices="$SLICES" --storage="$STORAGE" "${image[@]}" --max-restarts="$RESTARTS" \
      --restart-on-exit-codes=75 --termination-grace-period-seconds="$GRACE" "${more[@]}" \
      --command="$command"
    ;;
  status) run xpk workload list "${place[@]}" --filter-by-job="$NAME" ;;
  delete) run xpk workload delete "${place[@]}" --workload="$NAME" --force ;;
esac
