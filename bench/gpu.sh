#!/usr/bin/env bash
# Everything to do where a GPU is at hand, in one go and in under ten minutes:
#
#     bench/gpu.sh [python]
#
# builds the modules for this GPU, runs the test suite on it, the kernels under compute-sanitizer, and the benchmarks.
# Nothing is fetched: the interpreter (default .venv/bin/python, else python3) has what pyproject.toml lists under
# build-system, test, bench and triton; Liger and TRL are measured where they are installed.
#
# Results are JSON under bench/results/<gpu>/, logs under build/gpu/; README.md gets its table from the results. Every
# step runs, whatever became of those before it; the last lines say which failed, and so does the exit status.
set -uo pipefail
cd "$(dirname "$0")/.."

python=${1:-.venv/bin/python}
command -v "$python" > /dev/null || python=python3
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1

architecture=$("$python" -c "import torch; print('%d%d' % torch.cuda.get_device_capability())") || exit 1
[[ $architecture == 90 ]] && architecture=90a
name=$("$python" -c "import re, torch; print(re.sub(r'\W+', '-', torch.cuda.get_device_name().lower()).strip('-'))")
results=bench/results/$name
logs=build/gpu
mkdir -p "$results" "$logs"

deadline=590
steps=()
failed=()

# step NAME SECONDS COMMAND...: its output goes to a log, of which the end is shown. It gets so much time, or what is
# left.
step() {
  local name=$1 limit=$(($2 < deadline - SECONDS ? $2 : deadline - SECONDS)) begin=$SECONDS status=124
  shift 2
  if ((limit > 2)); then
    timeout --kill-after=5 "$limit" "$@" > "$logs/$name.log" 2>&1
    status=$?
  else
    echo "there was no time left" > "$logs/$name.log"
  fi
  ((status == 0)) || failed+=("$name")
  steps+=("{\"name\": \"$name\", \"status\": $status, \"seconds\": $((SECONDS - begin))}")
  echo "== $name: exit status $status after $((SECONDS - begin)) s"
  tail -n "${SHOWN:-4}" "$logs/$name.log"
}

bench() {
  local file=$1 seconds=$2
  shift 2
  SHOWN=40 step "bench-$file" "$seconds" "$python" -m kd_kernels bench "$@" --device cuda --json "$results/$file.json"
}

KD_CUDA=ON KD_CUDA_ARCHITECTURES=$architecture-real step build 150 "$python" setup.py build_ext --inplace
SHOWN=40 step info 30 "$python" -m kd_kernels info
SHOWN=30 step selftest 60 "$python" -m kd_kernels selftest

# What can be wrong on a GPU alone: streams, graphs, more entries than 2^31.
SHOWN=15 step gpu-tests 90 "$python" -m pytest -q tests/gpu tests/backends/test_hostile.py -k "gpu or 2_to_the_31"
step cuda-tests 60 "$python" -m pytest -q -n 4 tests/cuda

# Rows of every kind against eager code and peers; the compiler, which takes its time, on two of them.
bench rows-bfloat16 75 rows --rows 8192 --dtype bf16 --backend auto,triton --providers kd,eager,liger,trl --seconds 1
bench rows-float32 40 rows --rows 4096 --dtype fp32 --backend auto,triton --providers kd --seconds 0.5
bench rows-compiled 60 rows --rows 8192 --kind forward_kl,jsd --providers kd,compile --seconds 1
bench heads-bfloat16 60 heads --rows 8192 --hidden 2048 --teacher-hidden 4096 --kind forward_kl,jsd \
  --backend auto,triton --providers kd,liger,trl --seconds 2
bench transport-sinkd 40 transport --kind sinkd --rows 256 --backend auto,triton --providers kd,eager --seconds 1
bench transport-sinkhorn 60 transport --kind sinkhorn,sorted_l1 --backend auto,triton --providers kd,eager,compile \
  --seconds 1

if command -v compute-sanitizer > /dev/null; then
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  check="compute-sanitizer --error-exitcode 1 --target-processes application-only"
  step memcheck 90 $check --tool memcheck "$python" tests/gpu/sanitized.py
  step racecheck 60 $check --tool racecheck "$python" tests/gpu/sanitized.py few
  unset PYTORCH_NO_CUDA_MEMORY_CACHING
else
  echo "== there is no compute-sanitizer: memory and races are not checked"
fi

# Everything that runs on the GPU, in the time that is left.
SHOWN=15 step tests 300 "$python" -m pytest -q -n 8 tests --ignore tests/gpu --ignore tests/cuda \
  --ignore tests/distillation --ignore tests/native --ignore tests/planted_bugs

"$python" -m bench readme --write
commit=$(git describe --always --dirty --abbrev=40 --exclude='*' 2> /dev/null)
(IFS=,; echo "{\"commit\": \"$commit\", \"seconds\": $SECONDS, \"steps\": [${steps[*]}]}") > "$results/run.json"
echo "== $SECONDS s in all; ${#failed[@]} failed: ${failed[*]:-none}"
((${#failed[@]} == 0))
