#!/usr/bin/env bash
# What is to be run where a GPU is at hand, in order of worth. Each step (but for the tests) is resumable, leaves out what
# is done, and writes JSON. `tests` are skipped where there is no CUDA device.
#
#   benchmarks/gpu/run.sh correctness|tests|methods|graphs|overhead|launches|masks|train|memory|tiny-imagenet|cifar10|compare [more options]
#   benchmarks/gpu/run.sh tests,correctness,overhead  # one after the other, whatever becomes of each
#
# On an H200 correctness, tests, methods, overhead and launches take about a minute each, `masks` somewhat more, `train --rows large` more than two.
#
# `graphs` (never run on a GPU yet) has eight trainings of six short epochs, some four minutes with its imports.
#
# `compare` trains four methods on WRN-28-2 at once, 40 epochs each: a quarter of an hour, with MPS=1.
#
# DEVICE=cuda  OUT=docs/results  DATA=PATH (tiny-imagenet, cifar10, compare)  JOBS=3 (trained at once)  LIMIT=580 (seconds, of any)
# MPS=1 lets what is trained at once compute at once: NVIDIA's Multi-Process Service, for as long as the step takes.
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${DEVICE:=cuda}" "${OUT:=docs/results}" "${PYTHON:=python}" "${JOBS:=3}" "${LIMIT:=580}"
steps="correctness, tests, methods, graphs, overhead, launches, masks, train, memory, tiny-imagenet, cifar10, compare"
fail() { echo "$*" >&2; exit 2; }
[ $# -gt 0 ] || fail "which step? there are $steps"
step=$1; shift
if [[ $step == *,* ]]; then
    failed=()
    for one in ${step//,/ }; do bash benchmarks/gpu/run.sh "$one" "$@" || failed+=("$one"); done
    [ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}" >&2; exit 1; }
    exit
fi
tiny=(); [ -z "${TINY:-}" ] || tiny=(--tiny)
run() { timeout "$LIMIT" "$PYTHON" "$@"; }
images() {
    [ -n "${DATA:-}" ] || fail "where are the images? DATA=PATH benchmarks/gpu/run.sh $step"
    if [ -n "${MPS:-}" ]; then
        command -v nvidia-cuda-mps-control >/dev/null || fail "MPS=1, but there is no nvidia-cuda-mps-control here; leave MPS out"
        CUDA_MPS_PIPE_DIRECTORY=$(mktemp -d) CUDA_MPS_LOG_DIRECTORY=$(mktemp -d)
        export CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY
        nvidia-cuda-mps-control -d
        trap 'echo quit | nvidia-cuda-mps-control' EXIT
    fi
}
grid() {
    images
    run benchmarks/evidence.py "$1" --data "$DATA" --jobs "$JOBS" --out "$OUT" "${@:2}"
}
sees_cuda() { "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; }
[[ ", $steps," == *", $step,"* ]] || fail "unknown step $step; there are $steps"
[ "$DEVICE" != cuda ] || [ "$step" = tests ] || sees_cuda || fail "torch sees no CUDA device here; DEVICE=cpu TINY=1 tries a step on a CPU"
case $step in
    correctness | overhead | launches | methods | graphs) run "benchmarks/gpu/$step.py" --device "$DEVICE" --out "$OUT/gpu-$step.json" "${tiny[@]}" "$@" ;;
    tests) run -m pytest -o addopts= -p no:cacheprovider tests/pruning/kernels/test_kernels_triton.py tests/workflows/train/test_cuda_graph.py -k gpu "$@" ;;
    masks) run benchmarks/masks.py --device "$DEVICE" --batch 64 --size 224 --out "$OUT/gpu-masks.json" "$@" ;;
    train) run benchmarks/train.py --device "$DEVICE" --rows tiny,cifar,large --steps 100 --turns 1 --workers 14 --out "$OUT/gpu-train.json" "$@" ;;
    memory) run benchmarks/memory.py --device "$DEVICE" --out "$OUT/gpu-memory.json" "$@" ;;
    tiny-imagenet) grid tiny-imagenet --options="--compile --cuda-graphs --eval-batch-size 1000" "$@" ;;
    compare) images
        run -m starfire_cli compare --methods dsr,set,rigl,static --target 0.9 --seeds 1 --data "cifar10:$DATA" --model wrn28-2 \
            --epochs 40 --device "$DEVICE" --jobs 4 --no-latency --out "$OUT/compare-wrn28-2" "$@" -- --cuda-graphs --recipe cifar10 ;;
    cifar10) grid cifar10-40 --options="--cuda-graphs --eval-batch-size 2000" "$@" ;;
esac
