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
task=(--set "backbone=$work/clip" --set "data=$work/words" --set "epochs=$epochs" --set batch_size=16 --set augment=none)
# The rate of the prompts is the one of five that does best on a fifth of the base classes' training images, held out.
rate() { # NAME RATES SETTING…
  local name=$1 rates=$2; shift 2
  "$lotep" sweep "${task[@]}" --set class_split=base --set "shots=$shots" --set val_fraction=0.2 --set "prompt_lr=$rates" "$@" \
    --output "$work/rates/$name" 2>&1 | tee "$work/rates/$name.log" | sed -n 's/^chosen: prompt_lr=//p'
}
table() { # NAME RATES SETTING…
  local name=$1 rates=$2; shift 2
  mkdir -p "$work/rates"
  local chosen=$rates
  [[ $rates != *,* ]] || chosen=$(rate "$name" "$rates" "$@")
  echo; echo "## $name, prompts' rate $chosen"
  "$lotep" protocol base-to-novel --quiet --seeds "$seeds" --shots "$shots" "${task[@]}" --set "prompt_lr=$chosen" "$@" --output "$work/$name"
}
rates=0.0001,0.0002,0.0005,0.001,0.0025
none=(--set method.text_consistency=0 --set method.image_consistency=0 --set method.logit_consistency=0)
# The paper's ablation, each with what the one before has.
table 1-independent $rates --set method=mmlop --set method.depth=3 --set method.rank=0 "${none[@]}" --set method.drift_correction=false
table 2-low-rank $rates --set method=mmlop --set method.depth=3 --set method.shared_up=none "${none[@]}" --set method.drift_correction=false
table 3-consistency $rates --set method=mmlop --set method.depth=3 --set method.shared_up=none --set method.drift_correction=false
table 4-drift $rates --set method=mmlop --set method.depth=3 --set method.shared_up=none
table 5-shared-up $rates --set method=mmlop --set method.depth=3
# The family.
table zero-shot 0.01 --set method=zero-shot
table coop $rates --set method=coop --set method.tokens=4 --set "method.context=a photo of a"
table maple $rates --set method=maple --set method.depth=3
table promptsrc $rates --set method=promptsrc --set method.depth=3
table clip-lora $rates --set method=clip-lora --set method.dropout=0
