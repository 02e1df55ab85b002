#!/usr/bin/env bash
# What is to be run where a GPU is at hand, in order of worth; each step is resumable and skipped when done.
#   benchmarks/gpu/run.sh correctness|overhead|masks|accuracy      DEVICE=cuda OUT=docs/results (accuracy: DATA=... RUNS=runs/table5)
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${DEVICE:=cuda}" "${OUT:=docs/results}" "${PYTHON:=python}"
export PYTHON
tiny=(); [ -z "${TINY:-}" ] || tiny=(--tiny)
case "${1:?correctness, overhead, masks or accuracy}" in
    correctness | overhead) "$PYTHON" "benchmarks/gpu/$1.py" --device "$DEVICE" --out "$OUT/gpu-$1.json" "${tiny[@]}" ;;
    masks) "$PYTHON" benchmarks/masks.py --device "$DEVICE" --batch "${BATCH:-64}" --size "${SIZE:-224}" --out "$OUT/gpu-masks.json" ;;
    accuracy) shift; benchmarks/gpu/accuracy.sh "$@" ;;
    *) echo "unknown step $1; there are correctness, overhead, masks, accuracy" >&2; exit 2 ;;
esac
