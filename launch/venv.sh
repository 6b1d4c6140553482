# Sourced by the other scripts: makes .venv and installs this package into it.
#
#   ensure_venv ".[convert,test]" "torch==2.13.0"
#
# installs the second and further arguments first, one by one, then the package with its extras;
# skipped while they and setup.cfg are what they were. PYTHON=... names another interpreter.
# Needs Python 3.11 or later with its venv module (Debian: apt-get install python3 python3-venv).
# $root and $venv are set by the script that sources this.
# shellcheck shell=bash disable=SC2154

# shellcheck source=launch/common.sh
. "$root/launch/common.sh"

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

ensure_venv() {
  local package=$1 python stamp want
  shift
  stamp=$venv/.installed-$(printf '%s' "$package" | tr -c 'a-z\n' _)
  want=$( (printf '%s\n' "$root" "$package" "$@" && cat "$root/setup.cfg" "$root/pyproject.toml") |
    sha256sum)
  if [ "$(cat "$stamp" 2>/dev/null)" = "$want" ]; then
    return
  fi
  echo "Installing into $venv (some minutes the first time) ..."
  rm -f "$stamp"
  if [ ! -x "$venv/bin/python" ]; then
    python=$(find_python)
    if ! "$python" -m venv "$venv"; then
      rm -rf "$venv"
      fail "$python cannot make a virtual environment; on Debian: apt-get install python3-venv"
    fi
  fi
  local first
  for first in "$@"; do
    "$venv/bin/python" -m pip install --quiet "$first"
  done
  (cd "$root" && "$venv/bin/python" -m pip install --quiet --editable "$package")
  printf '%s\n' "$want" >"$stamp"
}
