#!/usr/bin/env bash
# Runs a command on this host so that it outlives the connection it was started over, by
# restart.sh. Called again with the same command while it runs, it shows its output again and ends
# when it ends. run_pod.sh calls it on every host of a pod.
#
#   bash launch/on_host.sh COMMAND...      starts or attaches
#   bash launch/on_host.sh --stop          SIGTERM: the run saves and ends
#   bash launch/on_host.sh --ended         exits with 0 if nothing runs, else with 1
#   bash launch/on_host.sh --dry-run COMMAND...
#
# Exits with restart.sh's code; or with 76 if the command was stopped, but not by --stop: the host
# is going away.
#
# FOLDER (default ~/.ba_jax_run) keeps its log, process id, command and exit code. One command at
# a time: a host has one set of devices. RESTARTS and DELAY are restart.sh's.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
. "$root/launch/common.sh"

folder=$(local_path "${FOLDER:-$HOME/.ba_jax_run}")
dry='' what=''
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry=yes ;;
    --stop | --ended) what=$1 ;;
    -h | --help) usage && exit ;;
    -*) fail "$1: expected --stop, --ended or --dry-run before the command" ;;
    *) break ;;
  esac
  shift
done

is_running() {
  local pid # which may be another process by now
  pid=$(cat "$folder/pid" 2>/dev/null) && kill -0 "$pid" 2>/dev/null &&
    grep -q launch/restart.sh "/proc/$pid/cmdline"
}

if [ "$what" = --ended ]; then
  is_running && exit 1
  exit 0
elif [ "$what" = --stop ]; then
  if [ -n "$dry" ]; then
    echo "kill -s TERM \"\$(cat $(quoted "$folder/pid"))\""
  elif is_running; then
    pid=$(cat "$folder/pid")
    touch "$folder/stopped"
    kill -s TERM "$pid"
    tail -n 0 -f --pid="$pid" "$folder/log"
    say "ended with $(cat "$folder/status")"
  else
    say "nothing runs"
  fi
  exit
fi

[ $# -gt 0 ] || fail "no command (--help explains)"
command=$(quoted "$@")
loop=(bash "$root/launch/restart.sh" --status="$folder/status" --restarts="${RESTARTS:-5}"
  --delay="${DELAY:-10}" "$@")
if [ -n "$dry" ]; then
  echo "# detached, output in $(quoted "$folder/log")"
  run setsid nohup "${loop[@]}"
  run "${loop[@]:0:2}" --dry-run "${loop[@]:2}"
  exit
fi

mkdir -p "$folder"
shown=0 # lines of the log that are not shown
if is_running; then
  [ "$(cat "$folder/command")" = "$command" ] ||
    fail "this host runs $(cat "$folder/command"): stop that first (--stop)"
  shown=$(wc -l <"$folder/log")
  shown=$((shown > 20 ? shown - 20 : 0))
  say "attached to what runs since $(date -r "$folder/pid")"
else
  rm -f "$folder/status" "$folder/stopped"
  [ ! -e "$folder/log" ] || mv "$folder/log" "$folder/log.before"
  printf '%s\n' "$command" >"$folder/command"
  : >"$folder/log" # here, so that it is there when it is followed
  setsid nohup "${loop[@]}" </dev/null >>"$folder/log" 2>&1 &
  printf '%s\n' "$!" >"$folder/pid"
fi
tail -n "+$((shown + 1))" -f --pid="$(cat "$folder/pid")" "$folder/log"
[ -s "$folder/status" ] || fail "the command ended without an exit code; its log is $folder/log"
code=$(cat "$folder/status")
[ "$code" -ne 75 ] || [ -e "$folder/stopped" ] || code=76
exit "$code"
