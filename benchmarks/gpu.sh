#!/usr/bin/env bash
# All that takes a GPU, within ten minutes: a build for this GPU alone, the tests on it,
# compute-sanitizer, the model's predictions, the benchmarks (benchmarks/results/cuda.csv). Exits 1
# where a stage failed, 2 without a GPU.
#
# PY=python3 is the interpreter; each stage's whole output is left in build/gpu.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
PY=${PY:-python3}
PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin
LOGS=build/gpu
END=580  # seconds; the last stage has ten more to write its results
STAGES=(facts build tests-cuda tests-triton tests-rest memcheck memcheck-triton racecheck predictions benchmarks)

"$PY" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null || {
  echo "$0: no GPU here that $PY can use (torch.cuda.is_available() is not true)." >&2
  exit 2
}
rm -rf "$LOGS" && mkdir -p "$LOGS" || exit 1

verdict() {  # NAME TEXT: one line, and the end of the log (more of it after a failure)
  echo "$2" >"$LOGS/$1.verdict"
  local lines=4
  [[ $2 != failed* ]] || lines=30
  printf '\n== %s: %s\n%s\n' "$1" "$2" "$(tail -n "$lines" "$LOGS/$1.log")"
}

stage() {  # NAME SECONDS COMMAND...
  local name=$1 limit=$2 left=$((END - SECONDS)) from=$SECONDS status
  shift 2
  : >"$LOGS/$name.log"
  ((limit < left)) || limit=$left
  ((limit > 0)) || { verdict "$name" "failed: no time was left"; return; }
  timeout -s "${SIGNAL:-TERM}" -k 10 "$limit" "$@" >"$LOGS/$name.log" 2>&1
  status=$?
  case $status in
    0) verdict "$name" "passed in $((SECONDS - from)) s" ;;
    124 | 137) verdict "$name" "failed: stopped after $limit s" ;;
    *) verdict "$name" "failed with status $status in $((SECONDS - from)) s" ;;
  esac
}

tests() {  # NAME EXPRESSION PATH...
  stage "$1" 180 "$PY" -m pytest -p no:cacheprovider --durations=5 -k "$2" "${@:3}"
}

sanitizer() {  # NAME TOOL BACKEND
  if ! command -v compute-sanitizer >/dev/null; then
    : >"$LOGS/$1.log"
    verdict "$1" "skipped: compute-sanitizer is not on PATH"
    return
  fi
  # Without torch's cache each tensor is an allocation, so that a write past its end shows.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 stage "$1" 180 compute-sanitizer --tool "$2" --error-exitcode 9 \
    --target-processes application-only --report-api-errors no "$PY" -m benchmarks.sanitize "$3"
  ! grep -qs "Device not supported" "$LOGS/$1.log" ||
    verdict "$1" "skipped: compute-sanitizer does not support this device"
}

stage facts 40 bash -c '
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
  { command -v nvcc >/dev/null && nvcc --version | tail -n 1; } || echo "nvcc is not on PATH"
  "$0" -c "import torch; print(torch.__version__, torch.cuda.get_device_properties(0))"' "$PY"

arch=$("$PY" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')
TORCH_CUDA_ARCH_LIST=$arch stage build 150 bash -c '
  "$0" setup.py -q build_ext --inplace &&
    "$0" -c "import sys; from maskcl import backends as b; sys.exit(b.BACKENDS[\"cuda\"].absent)"' "$PY"

tests tests-cuda cuda-cuda tests/ops tests/nn &
tests tests-triton triton-cuda tests/ops tests/nn &
tests tests-rest "cuda and not cuda-cuda and not triton-cuda" \
  tests/nn tests/test_build.py tests/test_promise.py tests/test_trainer.py &
sanitizer memcheck memcheck cuda &
sanitizer racecheck racecheck cuda &
sanitizer memcheck-triton memcheck triton &
wait

# Alone on the machine from here on. Predicted, measured, their ratio; and whole steps.
stage predictions 170 "$PY" -m benchmarks.predictions --save --seconds=140

# At its limit it is interrupted and saves the rows that it has.
SIGNAL=INT stage benchmarks 400 "$PY" -m benchmarks --save benchmarks --benchmark-max-time=0.5

printf '\n'
failed=0
for name in "${STAGES[@]}"; do
  text=$(cat "$LOGS/$name.verdict" 2>/dev/null || echo "failed: did not run")
  printf '%-16s %s\n' "$name" "$text"
  [[ $text != failed* ]] || failed=1
done
echo "$SECONDS s in all"
exit "$failed"
