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
# shellcheck source=launch/venv.sh
. "$root/launch/venv.sh"

# torch comes first and pinned, by itself: where the package index offers a CPU build of this
# version, that one wins, and what is installed next finds torch already there.
ensure_venv ".[convert,test]" "torch==2.13.0"

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
