#!/usr/bin/env bash
# One command for a machine with a CUDA device: pretrain an English and a Chinese miniature within a given time.
#
#   bash suites/pretrain_gpu.sh OUT SHARDS_EN SHARDS_ZH
#
# Make the shards beforehand, where the text is:  geep-bench pretrain --corpus FILE,FILE --lang en --shards DIR --shards-only
# For each model, the script measures the device's speed, plans steps for half of the time, trains, measures held-out perplexity
# and writes OUT/en and OUT/zh: folders for --backbone, with float16 weights in files under 16 MiB, and a model card.
# With DATA (a folder of local data) in the environment, accuracies of every layer follow, beside untrained controls.
#
# A stopped call resumes when it is made again, as long as WORK exists. Exit codes: 0 all done; 1 something failed (the last line
# says what); 2 it cannot run here; 3 the time of this call is used up, call again.
#
#   MINUTES    for all calls together (25)             SLICE   for this call (MINUTES)
#   WORK       training states (OUT/work)              DATA    local data with EN_SETS and ZH_SETS ("" for none)
#   LAYERS WIDTH ROWS RATE   12 256 512 5e-4           MORE    further options of geep-bench pretrain, e.g. --multi-exit
#   STEPS      number of steps, instead of a plan      DEVICE  cuda, or cpu to test the script
set -uo pipefail
cd "$(dirname "$0")/.." || exit
usage="usage: bash suites/pretrain_gpu.sh OUT SHARDS_EN SHARDS_ZH"
out=${1:?$usage} shards_en=${2:?$usage} shards_zh=${3:?$usage}
minutes=${MINUTES:-25} device=${DEVICE:-cuda}
began=$(date +%s)
ends=$((began + 60 * ${SLICE:-$minutes}))
for shards in "$shards_en" "$shards_zh"; do
  if [ ! -f "$shards/shards.json" ]; then
    echo "pretrain_gpu: no shards in $shards: make them with geep-bench pretrain --shards-only" >&2
    exit 2
  fi
done

DEVICE="$device" python3 - <<'PY' || exit 2
import os
import sys
try:
    import torch
except ImportError as error:
    sys.exit(f"pretrain_gpu: python3 cannot import torch ({error}): activate the environment that has it")
if os.environ["DEVICE"] == "cuda":
    if not torch.cuda.is_available():
        sys.exit("pretrain_gpu: no usable CUDA device: run it on a machine that has one")
    print("device:", torch.cuda.get_device_name(0))
PY

mkdir -p "$out"
out=$(cd "$out" && pwd)
work=${WORK:-$out/work}
mkdir -p "$work"
# Entry points need the metadata of the distribution. Nothing else is installed or downloaded.
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
python3 -m pip install -q --no-deps --no-build-isolation --target "$site" . || exit 2
export PYTHONPATH="$PWD:$site${PYTHONPATH:+:$PYTHONPATH}"
export GEEP_BENCH_CACHE=${GEEP_BENCH_CACHE:-$work/cache} TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$work/inductor}

# Compilation, measurement and evaluation take about two minutes per model; accuracies, if wanted, eight.
each=$(awk -v m="$minutes" -v d="${DATA:+8}" 'BEGIN { e = (m - 4 - d) / 2; print (e < 0.5 ? 0.5 : e) }')
amount=(--minutes "$each")
[ -n "${STEPS:-}" ] && amount=(--steps "$STEPS")
shape=(--layers "${LAYERS:-12}" --width "${WIDTH:-256}" --rows "${ROWS:-512}" --learning-rate "${RATE:-5e-4}")
read -ra more <<< "${MORE:-}"
declare -A about=(
  [en]="English Wikipedia (extracts, 2014 to 2024; authors: the contributors of Wikipedia) and unlabelled training texts of public data sets."
  [zh]="Chinese Wikipedia (extracts, 2014 to 2024, simplified characters; authors: the contributors of Wikipedia) and unlabelled training texts of public data sets."
)
declare -A shards=([en]="$shards_en" [zh]="$shards_zh")
declare -A sets=([en]="${EN_SETS-ag_news,yelp_polarity}" [zh]="${ZH_SETS-book_review,chnsenticorp}")
failures=()

left() { # print the minutes left in this call
  awk -v s=$((ends - $(date +%s))) 'BEGIN { print s / 60 }'
}

enough() { # MINUTES: exit with 3 if fewer are left
  if awk -v l="$(left)" -v n="$1" 'BEGIN { exit !(l < n) }'; then
    echo "pretrain_gpu: the time of this call is used up: call again to resume"
    exit 3
  fi
}

pretrain() { # LANGUAGE NAME OPTIONS...
  local language=$1 name=$2
  shift 2
  python3 -m harness.cli.main pretrain --device "$device" --lang "$language" --shards "${shards[$language]}" --out "$out/$name" \
    --work "$work/$name" "${shape[@]}" "${more[@]}" "$@" --licence cc-by-sa-4.0 --about "${about[$language]}" \
    2>> "$out/$name.log" | tee -a "$out/$name.txt"
  return "${PIPESTATUS[0]}"
}

for language in en zh; do
  echo "== $language"
  enough 0.1
  # Half a minute is kept for the last state, the evaluation and the files.
  stop=$(awk -v l="$(left)" 'BEGIN { l -= 0.5; print (l < 0.1 ? 0.1 : l) }')
  pretrain "$language" "$language" "${amount[@]}" --stop-after "$stop"
  case $? in
    0) ;;
    3) enough 1000000 ;;
    *) failures+=("$language"); tail -n 1 "$out/$language.log" ;;
  esac
done

if [ -n "${DATA:-}" ]; then
  for language in en zh; do
    [ -f "$out/$language/config.json" ] && [ -n "${sets[$language]}" ] || continue
    echo "== accuracy, $language"
    pretrain "$language" "$language-untrained" --steps 0 > /dev/null || { failures+=("$language-untrained"); continue; }
    for kind in trained untrained; do
      result="$out/depth-$language-$kind.json"
      [ -f "$result" ] && continue
      enough 2
      # The control uses the learning rates that suit untrained backbones.
      backbone="$out/$language" profile=mini
      [ $kind = untrained ] && backbone="$out/$language-untrained" profile=scratch
      python3 -m suites.studies.depth --method geep --profile $profile --data "$DATA" --datasets "${sets[$language]}" \
        --backbone "$language=$backbone" --device "$device" --max-train "${MAX_TRAIN:-8000}" --max-test "${MAX_TEST:-2000}" \
        --out "$result" 2>> "$out/depth.log" | tee -a "$out/depth.txt"
      [ "${PIPESTATUS[0]}" -eq 0 ] || { failures+=("depth-$language-$kind"); tail -n 1 "$out/depth.log"; }
    done
    given=()
    [ -f "$out/depth-$language-trained.json" ] && given+=(--accuracy "$out/depth-$language-trained.json")
    [ -f "$out/depth-$language-untrained.json" ] && given+=(--control "$out/depth-$language-untrained.json")
    python3 -m harness.pretraining.model_card "$out/$language" "${given[@]}" || failures+=("card-$language")
  done
fi

if [ ${#failures[@]} -gt 0 ]; then
  echo "pretrain_gpu: failed: ${failures[*]}"
  exit 1
fi
echo "pretrain_gpu: all done; backbones are in $out/en and $out/zh"
