#!/usr/bin/env bash
# The main job on real weights and real images: four methods on two networks, saved, reloaded, evaluated, used.
# Usage: records/main-job/run.sh [SHARED] [OUTPUT]; needs a release build. Two runs at a time, one thread each:
# the portable element-wise operations are serial, so that is quicker than one run with two threads.
set -euo pipefail
shared=${1:-../shared}
output=${2:-target/records/main-job}
lotep=${LOTEP:-target/release/lotep}
mkdir -p "$output"
export RAYON_NUM_THREADS=1

train() { # NETWORK DATA EPOCHS SUBSET METHOD [OPTIONS]
    local name=$1-$2-$5
    "$lotep" train --backbone "$shared/data/backbones/$1" --data "$shared/data/images/$2" --epochs "$3" --subset "$4" \
        --batch-size 16 --method "$5" "${@:6}" --output "$output/$name" >"$output/$name.txt" 2>"$output/$name.log"
}

column() { # NETWORK DATA EPOCHS SUBSET
    for method in linear-probe lotep-tk lotep-cp lor-vp; do
        train "$@" "$method"
    done
}

column resnet18 gtsrb 6 430 &
column vit_tiny_patch16_224 dtd10 4 400 &
wait
# Reloaded from disk, the adapters score what the runs that made them did.
"$lotep" eval --adapter "$output/resnet18-gtsrb-lotep-tk/adapter" --data "$shared/data/images/gtsrb" --format json \
    >"$output/resnet18-gtsrb-lotep-tk.eval.json" 2>/dev/null &
"$lotep" eval --adapter "$output/vit_tiny_patch16_224-dtd10-lotep-tk/adapter" --data "$shared/data/images/dtd10" \
    --format json >"$output/vit_tiny_patch16_224-dtd10-lotep-tk.eval.json" 2>/dev/null &
wait
"$lotep" predict --adapter "$output/resnet18-gtsrb-lotep-tk/adapter" --top-k 1 \
    "$shared/data/images/gtsrb/test" >"$output/resnet18-gtsrb-lotep-tk.predict.txt" 2>/dev/null
for name in resnet18 vit_tiny_patch16_224; do
    "$lotep" predict --backbone "$shared/data/backbones/$name" --top-k 5 --format json \
        "$shared/data/images/imagenet-samples" >"$output/$name-imagenet.jsonl" 2>/dev/null
done
