#!/usr/bin/env bash
# Writes launch/constraints.txt anew: the newest version of every package that setup.cfg admits, for
# each supported Python. The other scripts install these, so run the tests before committing it.
#
#   bash launch/lock.sh
#
# uv resolves for all Pythons and systems at once; it asks PyPI itself, or UV_INDEX_URL, not the
# index of pip's settings.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
VENV=.cache/uv
# shellcheck source=launch/venv.sh
. "$root/launch/venv.sh"

python=$(find_python)
"$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --upgrade uv
# The newest torch is a CUDA build of gigabytes; of 2.13.0 the index that CI installs from has a CPU
# build, which pip prefers.
exec "$venv/bin/uv" pip compile --quiet --universal --upgrade --python-version "${pythons%% *}" \
  --all-extras --constraint <(echo "torch==2.13.0") --no-annotate \
  --custom-compile-command "bash launch/lock.sh" --output-file launch/constraints.txt setup.cfg
