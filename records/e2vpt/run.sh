#!/usr/bin/env bash
# E²VPT's whole pipeline on real weights: masks, importance, nine degrees of pruning by successive halving, three seeds,
# and its pruned tokens taken out, on ViT-Ti/16 with ten textures of DTD; VPT and keys and values alone beside it.
# Usage: records/e2vpt/run.sh [SHARED] [OUTPUT]; needs a release build. Stopped, it goes on where it was. SUBSET images are
# trained on (300), a quarter of them held out where something is chosen.
set -euo pipefail
shared=${1:-../shared}
output=${2:-target/records/e2vpt}
lotep=${LOTEP:-target/release/lotep}
mkdir -p "$output"
data=$shared/data/images/dtd10
subset=${SUBSET:-300}
common=(--set "backbone=$shared/data/backbones/vit_tiny_patch16_224" --set "data=$data" --set epochs=6
        --set batch_size=16 --set "subset=$subset" --set val_fraction=0.25 --set warmup_epochs=1)

SECONDS=0
"$lotep" prune "${common[@]}" --token-percentages 10,50,90 --segment-percentages 25,50,75 --halving 3 --seeds 42,44,82 \
    --output "$output/prune" >"$output/prune.txt" 2>>"$output/prune.log"
echo "prune: $SECONDS s" >"$output/seconds.txt"

# What the same budget gives without pruning, and what its two parts give by themselves.
for method in "e2vpt" "e2vpt --tokens 0" "vpt-deep" "linear-probe"; do
    read -r name options <<<"$method"
    for seed in 42 44 82; do
        run=$output/${method// /}-$seed
        # shellcheck disable=SC2086 # options are words
        "$lotep" train --backbone "$shared/data/backbones/vit_tiny_patch16_224" --data "$data" --epochs 6 --batch-size 16 \
            --subset "$subset" --warmup-epochs 1 --method "$name" $options --seed "$seed" --resume --output "$run" >"$run.txt" 2>>"$run.log"
    done
done
echo "all: $SECONDS s" >>"$output/seconds.txt"

removed=$output/removed
if grep -q pruned_tokens "$output/prune/final/seed-42/config.toml"; then
    rm -rf "$removed"
    "$lotep" export --adapter "$output/prune/final/seed-42/adapter" --remove-pruned --data "$data" --output "$removed" \
        >"$output/removed.txt" 2>"$output/removed.log"
fi
cat "$output/prune.txt" "$output/seconds.txt"
grep -h "test  top1\|trainable" "$output"/*-*.txt
