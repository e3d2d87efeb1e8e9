#!/usr/bin/env bash
# One command for a machine with a CUDA device: tests first, then measurements, as JSON with facts about the machine.
#
#   bash suites/gpu_check.sh OUT [STEP ...]
#
# Default steps, in this order: tests sanitizer table executors projection quick. With DATA (a folder of local data) and EN_BACKBONE in the
# environment, mini and rivals follow; with ZH_BACKBONE, rivals includes the Chinese datasets. Each step writes *.txt and *.json
# into OUT, and runs as *.tar.gz in the layout of reports/published/. A failed step does not stop the others: the last line names
# all failed steps, and the exit code is 1.
# The packages of pyproject.toml are needed; the project itself runs from the checkout.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
out=${1:?usage: bash suites/gpu_check.sh OUT [STEP ...]}
shift
steps=("$@")
if [ ${#steps[@]} -eq 0 ]; then
  steps=(tests sanitizer table executors projection quick)
  if [ -n "${DATA:-}" ]; then steps+=(mini rivals); fi
fi
for step in "${steps[@]}"; do
  case $step in
    tests | sanitizer | table | executors | projection | quick | mini | rivals) ;;
    *) echo "gpu_check: unknown step '$step': choose from tests sanitizer table executors projection quick mini rivals" >&2; exit 2 ;;
  esac
done
mkdir -p "$out"
out=$(cd "$out" && pwd)

python3 - <<'PY' || exit 2
import sys
from importlib.util import find_spec
needed = "torch transformers tokenizers safetensors numpy pandas pyarrow matplotlib sklearn scipy pydantic jinja2 tqdm"
missing = [name for name in f"{needed} pytest pytest_benchmark hypothesis".split() if find_spec(name) is None]
if missing:
    sys.exit(f"gpu_check: python3 has no {', '.join(missing)}: activate the environment that has them, or install them")
import torch
if not torch.cuda.is_available():
    sys.exit("gpu_check: no usable CUDA device: run it on a machine that has one")
if find_spec("cupy") is None:
    sys.exit("gpu_check: python3 has no cupy, which launches the CUDA kernels: install the extra [cuda]")
print("device:", torch.cuda.get_device_name(0))
PY

# Entry points need the metadata of the distribution. Nothing else is installed or downloaded.
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
python3 -m pip install -q --no-deps --no-build-isolation --target "$site" . || exit 2
export PYTHONPATH="$PWD:$site${PYTHONPATH:+:$PYTHONPATH}"

run_folder() { # NAME ARGUMENTS...: make a run and pack it into OUT/NAME.tar.gz without its per-sample rows
  local name=$1 folder="$site/runs/$1"
  shift
  python3 -m harness.cli.main run --device cuda --out "$folder" "$@" 2> "$out/$name.log" | tee "$out/$name.txt"
  local ended=${PIPESTATUS[0]}
  [ -d "$folder" ] && tar -C "$site/runs" --exclude samples --exclude plan -czf "$out/$name.tar.gz" "$name"
  return "$ended"
}

step_tests() { python3 -m pytest tests -m gpu -q 2>&1 | tee "$out/tests.txt"; }

step_sanitizer() {
  if ! command -v compute-sanitizer > /dev/null; then
    echo "compute-sanitizer is not installed: step skipped" | tee "$out/sanitizer.txt"
    return 0
  fi
  local tool
  for tool in memcheck racecheck synccheck; do
    echo "-- $tool"
    compute-sanitizer --tool "$tool" --error-exitcode 1 --target-processes all \
      python3 -m pytest tests/geep/exit_table tests/harness/execution/test_sort.py -m gpu -q -x || echo "-- $tool failed"
  done 2>&1 | tee "$out/sanitizer.txt"
  ! grep -Eq "ERROR SUMMARY: [1-9]|^-- .* failed$" "$out/sanitizer.txt"
}

step_table() {
  local tokens failed=0
  for tokens in 10000 1000000 100000000; do
    python3 -m pytest suites/test_exit_table.py --benchmark-only --device cuda --tokens "$tokens" -q -p no:cacheprovider \
      --benchmark-json "$out/exit-table-$tokens.json" || echo "-- $tokens tokens failed"
  done 2>&1 | tee "$out/table.txt"
  grep -q "^-- .* failed$" "$out/table.txt" && failed=1
  # 10^9 n-grams of half as many tokens. Text is drawn on the host and not kept; this takes most of the time, about three
  # minutes on one slow core.
  python3 -m suites.studies.exit_table_load --ngrams 1000000000 --backend cuda --device cuda --out "$out/exit-table-load.json" \
    || failed=1
  return "$failed"
}

step_executors() {
  local failed=0
  # BERT-base's shape, every way to run blocks at four batch sizes; then enough samples for batches of equal exits.
  python3 -m suites.studies.executor_speed --device cuda --samples 10000 --rounds 7 --batch-size 32,128,512,2048 \
    --batch-tokens 16384 --compute eager,compiled,graphs,compiled-graphs --roof --profile "$out/executors-profile.txt" \
    --out "$out/executors.json" 2>> "$out/executors.log" | tee "$out/executors.txt"
  [ "${PIPESTATUS[0]}" -eq 0 ] || failed=1
  python3 -m suites.studies.executor_speed --device cuda --samples 100000 --rounds 3 --batch-size 512,2048 \
    --batch-tokens 16384 --compute graphs \
    --out "$out/executors-100k.json" 2>> "$out/executors.log" | tee "$out/executors-100k.txt"
  [ "${PIPESTATUS[0]}" -eq 0 ] || failed=1
  python3 -m pytest suites/test_executors.py --benchmark-only --shape bert-base-uncased --samples 10000 --device cuda \
    --batch-size 256 --compute graphs -q -p no:cacheprovider --benchmark-json "$out/executors-suite.json" || failed=1
  return "$failed"
}

step_projection() {
  local failed=0 card="$out/device-card.toml"
  # A card of this device, then projected against measured times: exit code 1 if an executor is off by more than 15 %.
  python3 -m suites.studies.projection --calibrate "$card" --device cuda --dtype bfloat16 --rounds 3 --fresh \
    2> "$out/projection.log" | tee "$out/projection.txt"
  [ "${PIPESTATUS[0]}" -eq 0 ] || return 1
  for compute in eager graphs; do
    python3 -m suites.studies.projection --check --card "$card" --device cuda --samples 4000 --batch-size 32,128,512 \
      --backbone bert-base-uncased,google/bert_uncased_L-8_H-512_A-8 --compute "$compute" --rounds 5 --fresh \
      --out "$out/projection-$compute.json" 2>> "$out/projection.log" | tee -a "$out/projection.txt"
    [ "${PIPESTATUS[0]}" -eq 0 ] || failed=1
  done
  return "$failed"
}

step_quick() { run_folder quick --profile quick; }

step_mini() {
  run_folder mini --profile mini --data "${DATA:?mini needs DATA}" --backbone "en=${EN_BACKBONE:?mini needs EN_BACKBONE}" \
    --methods bert,distilbert,tinybert,fastbert,fastbert-faithful,geep,geep-verified,control-constant,control-random,control-length,control-sequential,oracle
}

step_rivals() {
  local backbones="en=${EN_BACKBONE:?rivals needs EN_BACKBONE}" datasets=ag_news,yelp_polarity methods
  if [ -n "${ZH_BACKBONE:-}" ]; then backbones+=",zh=$ZH_BACKBONE"; datasets+=,book_review,lcqmc; fi
  # Without the methods that run on a CPU only.
  methods=$(python3 -c "
from harness.running import profile
print(','.join(name for name in profile.load('rivals').methods if not name.startswith(('bert-int8', 'bert-onnx'))))") || return 1
  run_folder rivals --profile rivals --data "${DATA:?rivals needs DATA}" --backbone "$backbones" --datasets "$datasets" \
    --methods "$methods"
}

failures=()
for step in "${steps[@]}"; do
  echo "== $step"
  "step_$step" || failures+=("$step")
done
if [ ${#failures[@]} -gt 0 ]; then
  echo "gpu_check: failed: ${failures[*]}"
  exit 1
fi
echo "gpu_check: all steps passed; results are in $out"
