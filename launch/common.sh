# Sourced by the other scripts: errors, settings, --dry-run.
# shellcheck shell=bash disable=SC2154

fail() { # WORDS...: a setting or argument is wrong
  printf '%s: %s\n' "$0" "$*" >&2
  exit 2
}

say() { # WORDS...: progress, beside the output of the commands
  printf '%s: %s\n' "${0##*/}" "$*" >&2
}

usage() { # the comment at the top of the script is its documentation
  awk 'NR == 1 || /^#SBATCH/ { next } !/^#/ { exit } { sub(/^# ?/, ""); print }' "$0"
}

quoted() { # WORDS...: one line that a shell reads back as the same words
  local word line=''
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="'${word//"'"/"'\\''"}'"
    line+=" $word"
  done
  printf '%s\n' "${line# }"
}

run() { # COMMAND...: runs it; with dry=yes prints it
  if [ -n "${dry:-}" ]; then
    quoted "$@"
  else
    "$@"
  fi
}

subcommand() { # LIST WORDS...: sets `what` to the first word, one of "run, status or delete"
  local list=$1 word
  shift
  [ $# -gt 0 ] || fail "no subcommand: expected $list (--help explains)"
  what=$1
  case $what in -h | --help) usage && exit ;; esac
  for word in ${list//,/}; do
    [ "$word" = or ] || [ "$word" != "$what" ] || return 0
  done
  fail "$what: expected $list"
}

takes_command() { # WORDS...: the remaining words; only the subcommand run takes a command
  if [ "$what" = run ]; then
    [ $# -gt 0 ] || fail "run: no command (--help explains)"
  else
    [ $# -eq 0 ] || fail "$what takes no command, found $1"
  fi
}

need() { # NAME WHAT: a setting without a default
  [ -n "${!1:-}" ] || fail "$1 is not set: expected $2"
}

whole_number() { # NAME VALUE LEAST
  case $2 in
    '' | *[!0-9]*) fail "$1=$2: expected a whole number, at least $3" ;;
  esac
  [ "$2" -ge "$3" ] || fail "$1=$2: expected at least $3"
}

pack() { # FILE: packs the tree of $root, without caches and outputs, into a .tar.gz
  local folder left=()
  for folder in .git '.venv*' .cache .hypothesis .ruff_cache build dist runs report; do
    left+=(--exclude="./$folder")
  done
  run mkdir -p "$(dirname "$1")" &&
    run tar -czf "$1" "${left[@]}" --exclude=__pycache__ --exclude='*.egg-info' -C "$root" .
}

local_path() { # PATH: as ba_jax.config.local_path: ~, $NAME and ${NAME} expanded, addresses refused
  local rest=$1 path='' name home
  while [[ $rest =~ ^(.*)\$(\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*))(.*)$ ]]; do
    name=${BASH_REMATCH[3]}${BASH_REMATCH[4]}
    [ -n "${!name+set}" ] || fail "$1: the variable \$$name is not set"
    path=${!name}${BASH_REMATCH[5]}$path
    rest=${BASH_REMATCH[1]}
  done
  path=$rest$path
  if [[ $path =~ ^(~[A-Za-z0-9._-]*)(/.*)?$ ]]; then
    eval "home=${BASH_REMATCH[1]}"
    [ "$home" != "${BASH_REMATCH[1]}" ] || fail "$1: no home folder of $home"
    path=$home${BASH_REMATCH[2]}
  fi
  [[ ! $path =~ ^[A-Za-z][A-Za-z0-9+.-]*:/ ]] || fail "$1: expected a path; mount the bucket"
  printf '%s' "$path"
}

workdir_of() { # COMMAND...: the run's folder, out of its --workdir; nothing if it has none
  while [ $# -gt 0 ]; do
    case $1 in
      --workdir=* | -workdir=*) printf '%s' "${1#*=}" ;;
      --workdir | -workdir) printf '%s' "${2:-}" ;;
    esac
    shift
  done
}
