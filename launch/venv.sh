# Sourced by the other scripts: makes .venv and installs this package into it.
#
#   ensure_venv ".[convert,test]"
#
# PYTHON=...           another interpreter: a command or a path
# VENV=...             another folder than .venv, for a second interpreter or other versions
# VERSIONS=newest      the newest versions, instead of those of launch/constraints.txt, which the
#                      tests ran with; VERSIONS=lowest: the lower bounds of setup.cfg
#
# The install is skipped while setup.cfg and launch/constraints.txt are what they were. Needs one of
# the Pythons of setup.cfg with its venv module (Debian: apt-get install python3 python3-venv).
# $root is set by the script that sources this.
# shellcheck shell=bash disable=SC2154

# shellcheck source=launch/common.sh
. "$root/launch/common.sh"

venv=${VENV:-.venv}
[ "${venv#/}" != "$venv" ] || venv=$root/$venv
pythons=$(sed -n 's/^ *Programming Language :: Python :: //p' "$root/setup.cfg" | paste -sd ' ')

version_of() { # PYTHON: 3.11, say
  "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

find_python() {
  local candidate path version names=()
  for version in $pythons; do names+=("python$version"); done
  names+=(python3)
  [ -z "${PYTHON:-}" ] || names=("$PYTHON")
  for candidate in "${names[@]}"; do
    # The commands that pyenv puts on PATH refuse to run while another version is chosen.
    for path in "$candidate" "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/*/bin/"$candidate"; do
      version=$(version_of "$path") || continue
      case " $pythons " in *" $version "*) printf '%s' "$path" && return ;; esac
    done
  done
  version=$(version_of "$candidate") || version="no Python that runs"
  fail "$candidate is $version, expected Python ${pythons// /, };" \
    "on Debian: apt-get install python3 python3-venv, or set PYTHON"
}

ensure_venv() {
  local package=$1 versions=${VERSIONS:-locked} python='' options=() stamp want
  stamp=$venv/.installed-$(printf '%s' "$package" | tr -c 'a-z\n' _)
  want=$( (printf '%s\n' "$root" "$package" &&
    cat "$root/setup.cfg" "$root/pyproject.toml" "$root/launch/constraints.txt") | sha256sum)
  if [ -n "${PYTHON:-}" ] || [ ! -x "$venv/bin/python" ]; then
    python=$(find_python)
  fi
  if [ ! -x "$venv/bin/python" ]; then
    if ! "$python" -m venv "$venv"; then
      rm -rf "$venv"
      fail "$python cannot make a virtual environment; on Debian: apt-get install python3-venv"
    fi
  elif [ -n "$python" ] && [ "$(version_of "$python")" != "$(version_of "$venv/bin/python")" ]; then
    fail "$venv has Python $(version_of "$venv/bin/python"), PYTHON=$PYTHON is" \
      "$(version_of "$python"): delete that folder, or name another, such as" \
      "VENV=.venv-$(version_of "$python")"
  fi
  [ "$versions" = locked ] || rm -f "$venv"/.installed-*
  case $versions in
    locked)
      [ "$(cat "$stamp" 2>/dev/null)" != "$want" ] || return 0
      rm -f "$stamp"
      options=(--constraint "$root/launch/constraints.txt")
      ;;
    lowest)
      sed -n 's/^ *\([A-Za-z0-9_-]*\)>=\([0-9.]*\)$/\1==\2/p' "$root/setup.cfg" >"$venv/lowest.txt"
      options=(--constraint "$venv/lowest.txt")
      ;;
    newest) options=(--upgrade --upgrade-strategy eager) ;;
    *) fail "VERSIONS=$versions: expected locked, newest or lowest" ;;
  esac
  echo "Installing into $venv, $versions versions (some minutes the first time) ..."
  (cd "$root" && "$venv/bin/python" -m pip install --quiet "${options[@]}" --editable "$package")
  [ "$versions" != locked ] || printf '%s\n' "$want" >"$stamp"
}
