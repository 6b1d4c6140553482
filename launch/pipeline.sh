#!/usr/bin/env bash
# The whole chain at full size: data, weights, tokenizer, flow decoder, vocoder, language model in
# two stages, SFT, evaluation, export.
#
#   bash launch/pipeline.sh --dry-run            prints every command
#   ROOT=/data/baichuan bash launch/pipeline.sh  runs them, each once, on this machine's devices
#
# Each command is one job: on a pod, run the same one on every host. Each resumes after a stop.
# SIZE=1b5 or 7b. BASE=DIR, an original release of the same sizes, lends the export its layout,
# vision weights, text tokenizer and code. The commands are in configs/recipes.py:full.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec python -m ba_jax.recipe --config=configs/recipes.py:full --config.size="${SIZE:-7b}" \
  --config.root="${ROOT:-/data/baichuan}" --config.base="${BASE:-}" "$@"
