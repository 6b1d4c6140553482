#!/usr/bin/env bash
# Installs what the tests need into .venv and runs lint, format check and tests.
#
#   bash launch/test.sh                      everything, as CI does, on up to 4 CPUs at once
#   bash launch/test.sh -m "not slow"        the quick part; any pytest arguments are passed on
#   bash launch/test.sh tests/unit/test_house.py -k torch
#
# PYTHON, VENV and VERSIONS choose another interpreter, folder and versions (launch/venv.sh):
#
#   PYTHON=python3.13 VENV=.venv-3.13 VERSIONS=newest bash launch/test.sh -m "not slow"
#
# EXTRAS=test leaves PyTorch out, several GB where its index has no build for CPUs alone, and with
# it the tests that compare with it; the summary counts them.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
# shellcheck source=launch/venv.sh
. "$root/launch/venv.sh"

ensure_venv ".[${EXTRAS:-convert,test}]"
export PATH="$venv/bin:$PATH"
if [ "${VERSIONS:-locked}" = locked ]; then # newer rules are no faults of the tree
  ruff check .
  ruff format --check .
  shellcheck .ci/run launch/*.sh
fi
if [ $# -eq 0 ]; then
  # A process compiles on little more than one CPU. A file stays with one worker, for its fixtures.
  workers=$(nproc)
  set -- -n "$((workers < 4 ? workers : 4))" --dist loadfile --durations 15
fi
exec python -m pytest "$@"
