#!/usr/bin/env bash
# Table 5 on Tiny-ImageNet, recipe of appendix 7.2.1 at 64 px: each cell is one run, done cells are skipped, a cut-off
# one is resumed.   DATA=path/to/tiny-imagenet-200 benchmarks/gpu/accuracy.sh [more options of starfire train]
set -uo pipefail
cd "$(dirname "$0")/../.."
: "${DATA:?DATA=path/to/tiny-imagenet-200}"
: "${RUNS:=runs/table5}"
: "${CELLS:=dense:0 ck:0.6 window:0.6 ck:0.8 window:0.8 ck:0.4 window:0.4 ck:0.2 window:0.2}"
: "${PYTHON:=python}"
for cell in $CELLS; do
    method=${cell%%:*} target=${cell##*:} name=${cell/:/-}
    if [ -e "$RUNS/$name/summary.json" ]; then echo "$name is done"; continue; fi
    if [ -e "$RUNS/$name/last.pt" ]; then
        "$PYTHON" -m starfire_cli train --resume "$RUNS/$name" --json
    else
        "$PYTHON" -m starfire_cli train --data "$DATA" --recipe tiny-imagenet --image-size 64 \
            --method "$method" --target "$target" --out "$RUNS" --name "$name" --json "$@"
    fi >"$RUNS-$name.json" && mkdir -p "$RUNS/$name" && mv "$RUNS-$name.json" "$RUNS/$name/summary.json" && cat "$RUNS/$name/summary.json"
done
