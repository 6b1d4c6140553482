#!/usr/bin/env bash
# Runs a command on N devices of this machine's CPU: a mesh to try a config on without a pod.
#
#   bash launch/local_mesh.sh 8 python -m ba_jax.train --config=... --workdir=DIR --config.mesh.fsdp=8
#   bash launch/local_mesh.sh 2 --processes python -m ba_jax.train --config=... --workdir=DIR
#
# Without --processes: one process with N simulated devices. With it: N processes on loopback, each
# with the flags --distributed --coordinator --processes --process after its own.
#
#   --devices=1      simulated devices of each process, with --processes
#   --port=P         of process 0; without it a free one is taken
#   --grace=30       seconds that the others have to end when one has failed, before SIGKILL
#   --dry-run        prints the commands
#
# Each line of output begins with [number of the process]. SIGTERM and Ctrl-C go to all processes;
# they save and end by themselves. The exit code is that of the first process that failed, as a
# shell tells it (137: SIGKILL), but one that no restart helps against (1, 2) goes before 75 and
# signals; the others are then sent SIGTERM, and SIGKILL after --grace.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
. "$root/launch/common.sh"

dry='' many='' devices=1 port='' grace=30 count=''
while [ $# -gt 0 ]; do
  case $1 in
    --processes) many=yes ;;
    --devices=*) devices=${1#*=} ;;
    --port=*) port=${1#*=} ;;
    --grace=*) grace=${1#*=} ;;
    --dry-run) dry=yes ;;
    -h | --help) usage && exit ;;
    -*) fail "$1: expected --processes, --devices, --port, --grace or --dry-run" ;;
    *)
      [ -z "$count" ] || break
      count=$1
      ;;
  esac
  shift
done
[ -n "$count" ] || fail "no N, the number of devices or processes (--help explains)"
whole_number N "$count" 1
whole_number --devices "$devices" 1
whole_number --grace "$grace" 0
[ $# -gt 0 ] || fail "no command (--help explains)"
[ -n "$many" ] || [ "$devices" = 1 ] || fail "--devices=$devices: expected --processes with it"
[ ! -d "$root/.venv/bin" ] || export PATH="$root/.venv/bin:$PATH"

settings() { # DEVICES: of a process
  local flags="--xla_force_host_platform_device_count=$1"
  printf '%s\n' JAX_PLATFORMS=cpu "XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }$flags"
}

if [ -z "$many" ]; then
  mapfile -t environment < <(settings "$count")
  [ -n "$dry" ] || exec env "${environment[@]}" "$@"
  run env "${environment[@]}" "$@"
  exit
fi

free_port() { # below the range that the kernel gives to connections
  local candidate
  while :; do
    candidate=$((20000 + RANDOM % 10000))
    if ! (exec 3<>"/dev/tcp/127.0.0.1/$candidate") 2>/dev/null; then
      printf '%s' "$candidate"
      return
    fi
  done
}
port=${port:-$(free_port)}
whole_number --port "$port" 1
mapfile -t environment < <(settings "$devices")
command_of() { # NUMBER COMMAND...: fills command
  local number=$1
  shift
  command=(env "${environment[@]}" "$@" --distributed --coordinator="127.0.0.1:$port"
    --processes="$count" --process="$number")
}
if [ -n "$dry" ]; then
  for ((number = 0; number < count; number++)); do
    command_of "$number" "$@"
    run "${command[@]}"
  done
  exit
fi

folder=$(mktemp -d)
pids=() readers=()
to_all() { # SIGNAL
  local pid
  for pid in "${pids[@]}"; do
    kill -s "$1" "$pid" 2>/dev/null || true
  done
}
# shellcheck disable=SC2329 # by trap
cleanup() {
  to_all KILL
  rm -rf "$folder"
}
trap cleanup EXIT
for name in TERM INT USR1; do
  # shellcheck disable=SC2064 # the name now, not later
  trap "to_all $name" "$name"
done

# Process groups of their own: a Ctrl-C comes to each process once, from here.
set -m
for ((number = 0; number < count; number++)); do
  command_of "$number" "$@"
  mkfifo "$folder/$number"
  sed -u "s/^/[$number] /" <"$folder/$number" &
  readers+=($!)
  "${command[@]}" </dev/null >"$folder/$number" 2>&1 &
  pids+=($!)
done
set +m

code=0 failed='' deadline=''
alive=("${!pids[@]}")
while [ ${#alive[@]} -gt 0 ]; do
  still=()
  for number in "${alive[@]}"; do
    if kill -0 "${pids[number]}" 2>/dev/null; then
      still+=("$number")
      continue
    fi
    ended=0
    wait "${pids[number]}" || ended=$?
    if [ "$ended" -ne 0 ] && [ -z "$failed" ]; then
      code=$ended failed=$number deadline=$((SECONDS + grace))
      say "process $number ended with $ended; the others are ended"
      to_all TERM
    elif [ "$ended" -ne 0 ] && [ "$ended" -ne 75 ] && [ "$ended" -le 128 ] &&
      { [ "$code" -eq 75 ] || [ "$code" -gt 128 ]; }; then
      code=$ended
    fi
  done
  alive=("${still[@]}")
  if [ -n "$deadline" ] && [ "$SECONDS" -ge "$deadline" ]; then
    to_all KILL
    deadline=''
  fi
  sleep 0.1
done
for number in "${!pids[@]}"; do
  # One that was ended before it wrote has left its reader waiting for a writer.
  : <>"$folder/$number"
done
for pid in "${readers[@]}"; do
  while kill -0 "$pid" 2>/dev/null; do
    wait "$pid" || true
  done
done
exit "$code"
