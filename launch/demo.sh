#!/usr/bin/env bash
# The main job, on two CPU cores: trains every part of a nano model on the embedded corpus,
# evaluates it on speakers and sentences that it has not met, and writes report/.
#
#   bash launch/demo.sh                       everything; open report/index.html afterwards
#   MINUTES=long bash launch/demo.sh          two to seven times the steps, one and a half to two hours
#   ENCODER=scratch bash launch/demo.sh       the audio encoder from scratch instead of Whisper-base
#   RUNS=/data/runs REPORT=/data/report bash launch/demo.sh
#
# Stop it at any point (Ctrl-C) and run it again: what is done stays done, what was begun goes on
# from its last checkpoint. Needs Python 3.11 or later with its venv module and the package index;
# no GPU. Logs are in runs/logs.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
venv=$root/.venv
runs=${RUNS:-runs}
report=${REPORT:-report}
encoder=${ENCODER:-whisper}
# shellcheck source=launch/venv.sh
. "$root/launch/venv.sh"

case ${MINUTES:-25} in
  25 | long) ;;
  *) fail "MINUTES=$MINUTES: expected 25 or long" ;;
esac
case $encoder in
  whisper) size=nano_whisper ;;
  scratch) size=nano ;;
  *) fail "ENCODER=$encoder: expected whisper or scratch" ;;
esac

mkdir -p "$runs/done" "$runs/logs"
clock=$runs/seconds
note_time() { # adds this call's seconds to those of earlier ones
  printf '%s\n' "$(($(cat "$clock" 2>/dev/null || echo 0) + SECONDS))" >"$clock.new"
  mv "$clock.new" "$clock"
  SECONDS=0
}
lane='' # process group of the second lane, while there is one
finish() {
  note_time
  [ -z "$lane" ] || kill -- "-$lane" 2>/dev/null || true
}
trap finish EXIT
trap 'exit 130' INT TERM

# run NAME COMMAND...: once; says how it goes, keeps the whole output in a log.
run() {
  local name=$1 began command
  shift
  command="$*"
  printf '%s\n' "${command#to_the_end * }" >>"$runs/commands.txt"
  if [ -e "$runs/done/$name" ]; then
    echo "[$name] done before"
    return
  fi
  began=$(date +%s)
  if ! "$@" 2>&1 | tee -a "$runs/logs/$name.log" |
    sed -u -e '/^[IW][0-9]\{4\} /d' -e "s/^/[$name] /"; then
    echo "[$name] failed; its log is $runs/logs/$name.log" >&2
    return 1
  fi
  printf '%s\n' "$(($(date +%s) - began))" >"$runs/done/$name.part"
  mv "$runs/done/$name.part" "$runs/done/$name"
}

# train NAME CONFIG STEPS STEPS_IF_LONG FLAGS...
train() {
  local name=$1 config=$2 steps=$3
  [ "${MINUTES:-25}" != long ] || steps=$4
  shift 4
  run "$name" to_the_end "$steps" python -m ba_jax.train --config="$config" \
    --workdir="$runs/$name" --config.train.steps="$steps" --config.checkpoint.every=50 "$@"
}
to_the_end() { # STEPS COMMAND...: a run that a signal stopped saves, and ends without an error
  local steps=$1
  shift
  "$@" || return
  local workdir=
  for argument in "$@"; do
    case $argument in --workdir=*) workdir=${argument#--workdir=} ;; esac
  done
  [ -d "$workdir/checkpoints/$steps" ] || {
    echo "stopped before step $steps; run the script again to go on"
    return 1
  }
}

evaluate() { # NAME CHECKPOINTS SUITES
  run "eval_$1" python -m ba_jax.evaluate --config="configs/eval.py:$size" \
    --checkpoint="$2" --suite="$3" --out="$runs/eval/$1"
}

ensure_venv ".[speech]"
export PATH="$venv/bin:$PATH" JAX_PLATFORMS=cpu
rm -f "$runs/commands.txt"

# 1. A text model, so that there is a language ability to keep; and the judge's weights.
run assets python -m ba_jax.speech.assets whisper-base whisper-tiny.en
if [ "$encoder" = whisper ]; then
  run whisper python -m ba_jax.convert --quiet --overwrite --out "$runs/whisper" --source \
    "$(python -c 'from ba_jax.speech import assets; print(assets.ensure("whisper-base"))')"
fi
train text configs/lm_text.py:nano 300 600

# 2. The tokenizer, and the corpus as its codes.
init=()
[ "$encoder" != whisper ] || init=(--config.init.audio_encoder="$runs/whisper")
train tokenizer "configs/tokenizer.py:$size" 220 900 --config.init.llm="$runs/text" "${init[@]}"
codes_of() { # NAME SPEED
  run "codes${1#embedded}" python -m ba_jax.corpora.tokenize --config="configs/tokenizer.py:$size" \
    --checkpoint="$runs/tokenizer" --dataset=embedded --speed="$2" --out="$runs/codes/$1"
}
codes_of embedded 1.0
codes_of embedded_slow 0.9
codes_of embedded_fast 1.1
# Words of the assistant, and pairs of them, one after the other: they have to be read to be said.
spliced() { # WORDS
  run "spliced_$1" python -m ba_jax.corpora --config=configs/prepare.py:spliced \
    --config.source.dataset="$runs/codes/embedded" --config.source.words="($1, $1)" \
    --config.source.pieces="(1, 6)" --config.source.utterances=4000 \
    --config.source.speakers="('af_heart', 'zf_xiaoxiao')" --config.source.sources="('closed',)" \
    --out="$runs/codes/spliced_$1"
}
spliced 1
spliced 2

# 3. Two lanes, as a step alone does not keep two cores busy: speech out of codes and the
#    single-stage ablation; and the two stages of the language model, the second one with words
#    before sentences.
from() { # RUN COMPONENT...: flags that start components from a run
  local run=$1 component
  shift
  for component in "$@"; do
    printf -- '--config.init.%s=%s\n' "$component" "$run"
  done
}
mapfile -t tokenizer < <(from "$runs/tokenizer" audio_encoder vq_bridge audio_decoder)
mapfile -t stage1 < <(from "$runs/stage1" llm audio_embed audio_head)
mapfile -t words < <(from "$runs/words" llm audio_embed audio_head)
start=("--config.init.llm=$runs/text" "--config.init.audio_embed=$runs/tokenizer")
codes=(--config.data.folder="$runs/codes" --config.eval_data.folder="$runs/codes")
lane_a() {
  train flow "configs/flow_matching.py:$size" 300 2000 "${tokenizer[@]}" &&
    train single configs/lm_single.py:nano_codes 440 1200 "${start[@]}" "${codes[@]}"
}
lane_b() {
  train stage1 configs/lm_stage1.py:nano_codes 40 100 "${start[@]}" "${codes[@]}" &&
    train words configs/lm_stage2.py:nano_words 320 900 "${stage1[@]}" "${codes[@]}" &&
    train stage2 configs/lm_stage2.py:nano_codes 660 2200 "${words[@]}" "${codes[@]}"
}
set -m # a process group of its own, so that it can be stopped whole
lane_a &
lane=$!
set +m
lane_b
wait "$lane"
lane=

# 4. What it can do, on held-out speakers and held-out sentences.
evaluate text_lm "$runs/text" qa_t2t
evaluate single "$runs/single" qa_t2t
evaluate tokenizer "$runs/tokenizer" codec
evaluate stage2 "$runs/tokenizer,$runs/flow,$runs/stage2" asr,qa_s2t,qa_t2t,qa_s2s,tts

# 5. The report; it prints what was reached beside what was asked for.
note_time
python - "$runs" <<'PYTHON'
import json, pathlib, sys
runs = pathlib.Path(sys.argv[1])
minutes = {p.name: round(int(p.read_text()) / 60, 2) for p in sorted((runs / "done").iterdir())}
minutes["total"] = round(int((runs / "seconds").read_text()) / 60, 2)
(runs / "minutes.json").write_text(json.dumps(minutes, indent=1))
PYTHON
python -m ba_jax.report --runs="$runs" --out="$report"
