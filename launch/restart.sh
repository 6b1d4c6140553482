#!/usr/bin/env bash
# Restarts a command until it is done: after a crash, a lost host or a stop, by the exit codes of
# ba_jax.train. The other scripts wrap it around the command of a host.
#
#   bash launch/restart.sh [OPTIONS] python -m ba_jax.train --config=... --workdir=DIR ...
#
#   --restarts=5     how many times in a row without a new checkpoint in WORKDIR/checkpoints
#   --delay=10       seconds before it starts again
#   --workdir=DIR    the run's folder, if it is not in the command
#   --status=FILE    its exit code is written there too
#   --stop=COMMAND   asks the command to stop, in place of the signal itself
#   --once           no loop, and the command's own exit code: for each of several processes below
#                    one loop (srun), so that the loop learns of the one that failed
#   --dry-run        prints the command
#
# SIGTERM and Ctrl-C are passed on (the run saves) and end the loop; SIGUSR1 is passed on.
# .venv/bin of this tree comes first on PATH. Exit codes:
#
#   0     done: the command ended with 0 and wrote WORKDIR/done, or has no WORKDIR
#   75    stopped before it was done: the same command resumes
#   1     --restarts is used up
#   else  the command's own, which no restart helps against (1: data, loss; 2: flags, config). It is
#         left in WORKDIR/failed too, which ends the loops of the other hosts, with 1
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
. "$root/launch/common.sh"
# shellcheck source=launch/tpu_flags.sh
. "$root/launch/tpu_flags.sh"

restarts=5 delay=10 workdir='' status='' stop=() once='' dry=''
while [ $# -gt 0 ]; do
  case $1 in
    --restarts=*) restarts=${1#*=} ;;
    --delay=*) delay=${1#*=} ;;
    --workdir=*) workdir=${1#*=} ;;
    --status=*) status=${1#*=} ;;
    --stop=*) read -ra stop <<<"${1#*=}" ;;
    --once) once=yes ;;
    --dry-run) dry=yes ;;
    -h | --help) usage && exit ;;
    -*) fail "$1: expected --restarts, --delay, --workdir, --status, --stop, --once or --dry-run before the command" ;;
    *) break ;;
  esac
  shift
done
[ $# -gt 0 ] || fail "no command (--help explains)"
whole_number --restarts "$restarts" 0
whole_number --delay "$delay" 0
workdir=$(local_path "${workdir:-$(workdir_of "$@")}")
status=$(local_path "$status")
[ ! -d "$root/.venv/bin" ] || export PATH="$root/.venv/bin:$PATH"
if [ -n "$dry" ]; then
  echo "# until done, at most $restarts times in a row without a new checkpoint in" \
    "$(quoted "${workdir:-(no --workdir)}")"
  run "$@"
  if [ ${#stop[@]} -gt 0 ]; then
    echo "# asked to stop"
    run "${stop[@]}"
  fi
  exit
fi

finish() { # CODE
  if [ -n "$status" ]; then
    printf '%s\n' "$1" >"$status.new"
    mv "$status.new" "$status"
  fi
  exit "$1"
}

latest_step() { # of the complete checkpoints; -1: there is none
  local latest=-1 folder step
  for folder in "$workdir"/checkpoints/*/; do
    step=$(basename "$folder")
    case $step in *[!0-9]*) continue ;; esac
    [ "$step" -le "$latest" ] || latest=$step
  done
  printf '%s' "$latest"
}

child='' stopped=''
# shellcheck disable=SC2329 # by trap
forward() { # SIGNAL
  [ "$1" = USR1 ] || stopped=yes
  if [ -z "$child" ]; then
    return 0
  elif [ "$1" != USR1 ] && [ ${#stop[@]} -gt 0 ]; then
    "${stop[@]}" || say "failed: $(quoted "${stop[@]}")"
  else
    kill -s "$1" "$child" 2>/dev/null || true
  fi
}
for name in TERM INT USR1; do
  # shellcheck disable=SC2064 # the name now, not later
  trap "forward $name" "$name"
done

run_once() { # COMMAND...: sets code
  # In a process group of its own: a Ctrl-C comes to it once, from here.
  set -m
  "$@" </dev/null &
  child=$!
  set +m
  [ -z "$stopped" ] || forward TERM
  while kill -0 "$child" 2>/dev/null; do
    wait "$child" || true # a signal ends the wait, not the command
  done
  code=0
  wait "$child" || code=$?
  child=''
}

needs_a_look() { # CODE: no restart helps
  [ "$1" -ne 0 ] && [ "$1" -ne 75 ] && [ "$1" -le 128 ]
}
tell_others() {
  [ ! -d "$workdir" ] || printf '%s ended with %s\n' "$HOSTNAME" "$code" >"$workdir/failed"
}
if [ -n "$once" ]; then
  run_once "$@"
  ! needs_a_look "$code" || tell_others
  finish "$code"
fi

[ -z "$workdir" ] || rm -f "$workdir/failed"
before=$(latest_step) fruitless=0
while [ -z "$stopped" ]; do
  run_once "$@"
  if [ "$code" -eq 0 ] && { [ -z "$workdir" ] || [ -e "$workdir/done" ]; }; then
    finish 0
  elif needs_a_look "$code"; then
    say "ended with $code, which a restart cannot mend"
    tell_others
    finish "$code"
  elif [ -n "$workdir" ] && [ -e "$workdir/failed" ]; then
    say "ended with $code, as $(cat "$workdir/failed"), which a restart cannot mend"
    finish 1
  fi
  step=$(latest_step)
  fruitless=$((step > before ? 0 : fruitless + 1))
  before=$step
  [ -z "$stopped" ] || break
  if [ "$fruitless" -gt "$restarts" ]; then
    say "ended with $code, for the $fruitless. time without a new checkpoint (latest: $step): gives up"
    finish 1
  fi
  say "ended with $code, not done; starts again in $delay s (latest checkpoint: $step;" \
    "$fruitless of $restarts without a new one)"
  began=$SECONDS # short sleeps: a signal that comes just before a long one would wait for its end
  while [ -z "$stopped" ] && [ "$((SECONDS - began))" -lt "$delay" ]; do
    sleep 0.2
  done
done
say "stopped, not done (latest checkpoint: $(latest_step)); run the same command to resume"
finish 75
