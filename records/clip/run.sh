#!/usr/bin/env bash
# CLIP's methods on a small CLIP of our own: what prompts do for base classes, and what consistency and drift correction do
# for novel ones. Everything is drawn; nothing is fetched.
#
#   cargo build --release && records/clip/run.sh [WORK]
#
# STEPS, SHOTS, EPOCHS and SEEDS make it shorter. What was done already is not done again.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=${1:-target/records-clip}
lotep=${LOTEP:-target/release/lotep}
steps=${STEPS:-3000} shots=${SHOTS:-16} epochs=${EPOCHS:-20} seeds=${SEEDS:-1,2,3}
mkdir -p "$work"

[ -e "$work/clip/config.json" ] || "$lotep" demo pretrain-clip --steps "$steps" --output "$work/clip"
[ -e "$work/words" ] || "$lotep" demo draw --task words --images 80 --size 32 --output "$work/words"
for part in base novel; do
  "$lotep" eval --quiet --backbone "$work/clip" --data "$work/words" --class-split $part
done

# Crops of a thing 32 pixels wide leave nothing to recognise.
common=(--seeds "$seeds" --shots "$shots" --set "backbone=$work/clip" --set "data=$work/words" --set "epochs=$epochs"
        --set batch_size=16 --set augment=none)
table() { # NAME PROMPTS' RATE, SETTING…
  local name=$1 rate=$2; shift 2
  echo; echo "## $name"
  "$lotep" protocol base-to-novel "${common[@]}" --set "prompt_lr=$rate" "$@" --output "$work/$name"
}
none=(--set method.text_consistency=0 --set method.image_consistency=0 --set method.logit_consistency=0)
# The paper's ablation, each with what the one before has.
table 1-independent 0.01 --set method=mmlop --set method.depth=3 --set method.rank=0 "${none[@]}" --set method.drift_correction=false
table 2-low-rank 0.01 --set method=mmlop --set method.depth=3 --set method.shared_up=none "${none[@]}" --set method.drift_correction=false
table 3-consistency 0.01 --set method=mmlop --set method.depth=3 --set method.shared_up=none --set method.drift_correction=false
table 4-drift 0.01 --set method=mmlop --set method.depth=3 --set method.shared_up=none
table 5-shared-up 0.01 --set method=mmlop --set method.depth=3
# The family.
table zero-shot 0.01 --set method=zero-shot
table coop 0.01 --set method=coop --set method.tokens=4 --set "method.context=a photo of a"
table maple 0.01 --set method=maple --set method.depth=3
table promptsrc 0.01 --set method=promptsrc --set method.depth=3
table clip-lora 0.001 --set method=clip-lora --set method.dropout=0
