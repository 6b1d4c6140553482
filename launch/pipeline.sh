#!/usr/bin/env bash
# The whole chain at full size, as documentation that runs: data, weights, tokenizer, flow decoder,
# vocoder, language model in two stages, SFT, evaluation, export.
#
#   bash launch/pipeline.sh --dry-run            prints every command
#   ROOT=/data/baichuan bash launch/pipeline.sh  runs them, each once, on this machine's devices
#
# Each command is one job: on a pod, run the same one on every host. Each goes on where it stopped.
# SIZE=1b5 or 7b; the tokenizer's text loss always goes through the 1.5 B model (paper 3.1).
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=${ROOT:-/data/baichuan}
size=${SIZE:-7b}
dry=
[ "${1:-}" != --dry-run ] || dry=yes
qwen=$([ "$size" = 7b ] && echo Qwen2.5-7B || echo Qwen2.5-1.5B)
raw=$root/raw records=$root/records codes=$root/codes weights=$root/weights runs=$root/runs

step() { # NAME COMMAND...
  local name=$1
  shift
  printf '\n# %s\n' "$name"
  printf '%q ' "$@"
  echo
  if [ -z "$dry" ] && [ ! -e "$root/done/$name" ]; then
    "$@"
    mkdir -p "$root/done" && touch "$root/done/$name"
  fi
}
prepare() { # KIND OUT FLAGS...
  local kind=$1 out=$2
  shift 2
  step "prepare-$out" python -m ba_jax.corpora --config="configs/prepare.py:$kind" \
    --out="$records/$out" --workers=16 "$@"
}
train() { # NAME CONFIG FLAGS...
  local name=$1 config=$2
  shift 2
  step "train-$name" python -m ba_jax.train --config="$config" --workdir="$runs/$name" "$@"
}
from() { # RUN COMPONENT...: flags that start components from a run
  local run=$1 component
  shift
  for component in "$@"; do
    printf -- '--config.init.%s=%s\n' "$component" "$run"
  done
}

# Data: one folder of records a task, as configs/mixtures.py names them. Here one public corpus
# each; a mixture takes as many members as you have (--config.data.mixture.NAME.dataset=...).
prepare librispeech asr --config.source.folder="$raw/LibriSpeech"
prepare manifest aqa --config.source.path="$raw/questions.jsonl"
prepare covost2 s2tt --config.source.folder="$raw/covost2"
prepare crawl intlv --config.source.path="$raw/podcasts"
prepare libritts tts --config.source.folder="$raw/LibriTTS"
prepare synthetic itts --config.source.path="$raw/texts"
prepare wenetspeech audio --config.source.folder="$raw/WenetSpeech"
prepare text text --config.source.path="$raw/texts"
prepare manifest sft --config.source.path="$raw/dialogues.jsonl"

# Weights to start from.
step whisper python -m ba_jax.convert --source "$raw/whisper-large-v3" --out "$weights/whisper"
step qwen-1.5b python -m ba_jax.convert --source "$raw/Qwen2.5-1.5B" --out "$weights/Qwen2.5-1.5B"
[ "$size" != 7b ] || step qwen python -m ba_jax.convert --source "$raw/$qwen" --out "$weights/$qwen"

# Tokenizer (3.1), flow decoder and vocoder (3.2).
train tokenizer configs/tokenizer.py:1b5 --config.data.folder="$records" \
  --config.init.audio_encoder="$weights/whisper" --config.init.llm="$weights/Qwen2.5-1.5B"
mapfile -t tokenizer < <(from "$runs/tokenizer" audio_encoder vq_bridge audio_decoder)
train flow "configs/flow_matching.py:$size" --config.data.folder="$records" "${tokenizer[@]}"
train vocoder "configs/vocoder.py:$size" --config.data.folder="$records"

# The corpora as codes, once: the language model's stages do not run the tokenizer.
for task in asr aqa s2tt intlv tts itts audio sft; do
  step "tokenize-$task" python -m ba_jax.corpora.tokenize --config="configs/lm_stage2.py:$size" \
    --checkpoint="$runs/tokenizer" --dataset="$records/$task" --out="$codes/$task" --drop_audio
done
step link-text ln -sfn "$records/text" "$codes/text"

# The language model (3.3): audio embeddings and head, then all but its text embedding and output.
train stage1 "configs/lm_stage1.py:$size" --config.data.folder="$codes" \
  --config.init.llm="$weights/$qwen"
mapfile -t stage1 < <(from "$runs/stage1" llm audio_embed audio_head)
train stage2 "configs/lm_stage2.py:$size" --config.data.folder="$codes" "${stage1[@]}"
mapfile -t stage2 < <(from "$runs/stage2" llm audio_embed audio_head)
train sft "configs/sft.py:$size" --config.data.folder="$codes" "${stage2[@]}"

# What it can do, and the weights under the names of the release, in float32 as trained (--dtype
# bfloat16 halves them). BASE=DIR, an original release of the same sizes, lends its layout, vision
# weights, text tokenizer and code; without it the weights and their config come out alone.
parts=$runs/tokenizer,$runs/flow,$runs/vocoder,$runs/sft
step evaluate python -m ba_jax.evaluate --config="configs/eval.py:$size" --checkpoint="$parts" \
  --out="$root/eval"
step join python -m ba_jax.convert join --checkpoint "$parts" --out "$weights/joined"
step export python -m ba_jax.convert export --checkpoint "$weights/joined" --out "$root/export" \
  ${BASE:+--base "$BASE"}
