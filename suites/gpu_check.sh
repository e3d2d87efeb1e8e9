#!/usr/bin/env bash
# One command for a machine with a CUDA device: correctness first, then figures, as JSON with fingerprints.
#
#   bash suites/gpu_check.sh OUT [DATA EN_BACKBONE]
#
# OUT/executors.json and OUT/quick/ (and OUT/mini/ with a data folder and a backbone) are laid out as in reports/published/.
# Needs the packages of pyproject.toml, not an installation: it runs from the checkout.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: bash suites/gpu_check.sh OUT [DATA EN_BACKBONE]}
data=${2:-} backbone=${3:-}
mkdir -p "$out"

python3 - <<'PY'
import sys, torch
if not torch.cuda.is_available():
    sys.exit("gpu_check: no usable CUDA device here: run it on a machine that has one")
print("device:", torch.cuda.get_device_name(0))
PY

# Entry points need the distribution's metadata; nothing else is installed, and nothing is fetched.
python3 -m pip install -q --no-deps --no-build-isolation --target "$out/.site" . 
export PYTHONPATH="$PWD:$out/.site${PYTHONPATH:+:$PYTHONPATH}"

echo "== tests on the device"
python3 -m pytest tests -m gpu -q | tee "$out/tests.txt"
echo "== executors at BERT-base's shape"
for batch in 32 128 256; do
  python3 -m suites.executors --device cuda --samples 4096 --rounds 7 --batch-size "$batch" --out "$out/executors-b$batch.json"
done
echo "== quick"
python3 -m harness.cli run --profile quick --device cuda --out "$out/quick"
if [ -n "$data" ]; then
  echo "== mini"
  python3 -m harness.cli run --profile mini --device cuda --data "$data" --backbone "en=$backbone" --out "$out/mini"
fi
rm -rf "$out/.site"
