#!/usr/bin/env bash
# Makes a TPU host ready: Python 3.11 to 3.13, .venv with this package, the bucket as a folder,
# and a look at the devices. It skips each part that is done, so run it as often as you like.
# On a pod run it on all hosts at once (run_pod.sh does): the devices answer when all ask.
#
#   BUCKET=my-bucket bash launch/setup_tpu.sh
#   bash launch/setup_tpu.sh --no-mount --no-check     in a container that has its folders
#   bash launch/setup_tpu.sh --dry-run                 prints every command, of a bare host
#
#   BUCKET=NAME         what is mounted, without gs://
#   MOUNT=/mnt/NAME     where; WORKDIR and data lie below it. The same on all hosts
#   PYTHON=...          another interpreter
#
# The mount keeps no metadata, as each host has to see at once what another has written, and renames
# folders, as a checkpoint gets its name when it is complete. Make the bucket with a hierarchical
# namespace (docs/pods.md), then such a rename is one step and cannot be seen half done.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/venv.sh
. "$root/launch/venv.sh"

dry='' mount=yes check=yes
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry=yes ;;
    --no-mount) mount='' ;;
    --no-check) check='' ;;
    -h | --help) usage && exit ;;
    *) fail "$1: expected --no-mount, --no-check or --dry-run" ;;
  esac
  shift
done
if [ -n "$mount" ]; then
  need BUCKET "the name of a bucket, or --no-mount"
  case $BUCKET in
    *://* | */*) fail "BUCKET=$BUCKET: expected the name alone, without gs:// and folders" ;;
  esac
  MOUNT=${MOUNT:-/mnt/$BUCKET}
  case $MOUNT in
    /*) ;;
    *) fail "MOUNT=$MOUNT: expected a path from / on" ;;
  esac
fi

# 1. Python. Ubuntu 22.04, which TPU hosts run, has 3.10; deadsnakes has builds of the others.
if [ -n "$dry" ] || ! (find_python) >/dev/null 2>&1; then
  [ -z "$dry" ] || echo "# unless there is Python 3.11, 3.12 or 3.13"
  run sudo add-apt-repository --yes ppa:deadsnakes/ppa
  run sudo apt-get update
  run sudo apt-get install --yes python3.11 python3.11-venv
fi

# 2. This package.
if [ -n "$dry" ]; then
  echo "# unless $venv has it"
  run cd "$root"
  run "${PYTHON:-python3.11}" -m venv "$venv"
  run "$venv/bin/python" -m pip install --quiet --constraint launch/constraints.txt \
    --editable ".[tpu]"
else
  ensure_venv ".[tpu]"
fi

# 3. The bucket.
if [ -n "$mount" ]; then
  if [ -n "$dry" ] || ! command -v gcsfuse >/dev/null; then
    [ -z "$dry" ] || echo "# unless there is gcsfuse"
    key=/usr/share/keyrings/cloud.google.asc apt=https://packages.cloud.google.com/apt
    run bash -o pipefail -c "curl -fsSL $apt/doc/apt-key.gpg | sudo tee $key >/dev/null"
    run bash -o pipefail -c "echo \"deb [signed-by=$key] $apt gcsfuse-\$(lsb_release -cs) main\" | \
sudo tee /etc/apt/sources.list.d/gcsfuse.list"
    run sudo apt-get update
    run sudo apt-get install --yes gcsfuse
  fi
  mounted=$([ -n "$dry" ] || findmnt -no SOURCE "$MOUNT" || true)
  if [ -z "$mounted" ]; then
    [ -z "$dry" ] || echo "# unless it is mounted"
    run sudo mkdir -p "$MOUNT"
    run sudo chown "$(id -un)" "$MOUNT"
    run gcsfuse --implicit-dirs --rename-dir-limit=200000 --metadata-cache-ttl-secs=0 \
      --metadata-cache-negative-ttl-secs=0 "$BUCKET" "$MOUNT"
  elif [ "$mounted" != "$BUCKET" ]; then
    fail "$MOUNT: has $mounted, expected $BUCKET; unmount it (fusermount -u $MOUNT) or set MOUNT"
  fi
fi

# 4. The devices.
if [ -n "$check" ]; then
  look='import jax; jax.distributed.initialize(); d = jax.devices(); '
  look+='print("process", jax.process_index(), "of", jax.process_count(), d[0].device_kind, len(d)); '
  look+='d[0].platform == "tpu" or exit(f"expected TPUs, found {d[0].platform}")'
  run "$venv/bin/python" -c "$look"
fi
