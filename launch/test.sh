#!/usr/bin/env bash
# Installs what the tests need into .venv and runs lint, format check and tests.
#
#   bash launch/test.sh                      everything, as CI does, on up to 4 CPUs at once
#   bash launch/test.sh -m "not slow"        the quick part; any pytest arguments are passed on
#   bash launch/test.sh tests/unit/test_house.py -k torch
#
# Needs Python 3.11 or later with its venv module (Debian: apt-get install python3 python3-venv).
# PYTHON=... names another interpreter. The install is skipped while setup.cfg is unchanged.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
venv=$root/.venv
torch="torch==2.13.0"

fail() {
  printf 'launch/test.sh: %s\n' "$*" >&2
  exit 2
}

find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      printf '%s' "$candidate"
      return
    fi
    [ "$candidate" != "${PYTHON:-}" ] || fail "PYTHON=$PYTHON is not Python 3.11 or later"
  done
  fail "Python 3.11 or later not found; on Debian: apt-get install python3 python3-venv"
}

install() {
  if [ ! -x "$venv/bin/python" ]; then
    local python
    python=$(find_python)
    if ! "$python" -m venv "$venv"; then
      rm -rf "$venv"
      fail "$python cannot make a virtual environment; on Debian: apt-get install python3-venv"
    fi
  fi
  # torch comes first and pinned, by itself: where the package index offers a CPU build of this
  # version, that one wins, and what is installed next finds torch already there.
  "$venv/bin/python" -m pip install --quiet "$torch"
  "$venv/bin/python" -m pip install --quiet --editable ".[convert,test]"
}

stamp=$venv/.installed
want=$( (printf '%s\n' "$root" "$torch" && cat setup.cfg pyproject.toml) | sha256sum)
if [ "$(cat "$stamp" 2>/dev/null)" != "$want" ]; then
  echo "Installing into $venv (some minutes the first time) ..."
  rm -f "$stamp"
  install
  printf '%s\n' "$want" >"$stamp"
fi

export PATH="$venv/bin:$PATH"
ruff check .
ruff format --check .
shellcheck .ci/run launch/*.sh
if [ $# -eq 0 ]; then
  # A process compiles on little more than one CPU. A file stays with one worker, for its fixtures.
  workers=$(nproc)
  set -- -n "$((workers < 4 ? workers : 4))" --dist loadfile --durations 15
fi
exec python -m pytest "$@"
