#!/usr/bin/env bash
# The main job, on two CPU cores: trains every part of a nano model on the embedded corpus,
# evaluates it on held-out voices and sentences, and writes report/.
#
#   bash launch/demo.sh                       everything; open report/index.html afterwards
#   MINUTES=long bash launch/demo.sh          two to seven times the steps, one and a half to two hours
#   ENCODER=scratch bash launch/demo.sh       the audio encoder from scratch instead of Whisper-base
#   RUNS=/data/runs REPORT=/data/report bash launch/demo.sh
#
# Installs the package into .venv, then runs the recipe configs/recipes.py:nano (`python -m
# ba_jax.recipe`). Stop it at any point (Ctrl-C) and run it again to resume. Needs Python 3.11 to
# 3.13 with its venv module and the package index; no GPU. Logs are in runs/logs.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
# shellcheck source=launch/venv.sh
. "$root/launch/venv.sh"

case ${MINUTES:-25} in
  25) long=False ;;
  long) long=True ;;
  *) fail "MINUTES=$MINUTES: expected 25 or long" ;;
esac
case ${ENCODER:-whisper} in
  whisper) model=nano_whisper ;;
  scratch) model=nano ;;
  *) fail "ENCODER=$ENCODER: expected whisper or scratch" ;;
esac

ensure_venv ".[speech]"
export PATH="$venv/bin:$PATH" JAX_PLATFORMS=cpu
exec python -m ba_jax.recipe --config=configs/recipes.py:nano --config.model="$model" \
  --config.long="$long" --config.runs="${RUNS:-runs}" --config.report="${REPORT:-report}"
