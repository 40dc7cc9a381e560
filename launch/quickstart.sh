#!/usr/bin/env bash
# From nothing to a page that shows every mode: make data, train, stop, resume, generate, evaluate. No GPU, no hub, no root.
# Usage: bash launch/quickstart.sh         everything lands in runs/quickstart (delete it to start over)
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/install.sh train,data,sim
export PATH="$PWD/.venv/bin:$PATH" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false SDL_VIDEODRIVER=dummy
out=runs/quickstart
say() { printf '\n== %s\n' "$*"; }

say "1/4 data: a scripted pusher of varied skill in the PushT simulator, written as shards"
# Another seed than the shipped checkpoint was trained on, so that it has seen none of these episodes.
[ -f "$out/shards/manifest.json" ] ||
  wam-video data convert "pusht:episodes=${EPISODES:-120},seed=1,image_size=64" --name pusht --size 64x64 --output "$out/shards"
wam-video data inspect "$out/shards" --output "$out/data.html"

say "2/4 train, stop after a minute, and go on where it stopped with the same command"
run=(configs/model/tiny.yaml configs/data/pusht.yaml configs/train/quickstart.yaml
  "data.datasets.pusht.path=$out/shards" "output_dir=$out/train" "steps=${STEPS:-500}")
wam-video train "${run[@]}" max_minutes=1
wam-video train "${run[@]}"

say "3/4 every mode, from the committed checkpoint, on an episode that it has not seen"
for mode in policy forward inverse video joint; do
  wam-video generate --model model_cards/wam-tiny-pusht --mode "$mode" --input "$out/shards" --output "$out/generate/$mode" --overwrite
done

say "4/4 both models, every mode, beside its controls"
wam-video evaluate --model "short-run=$out/train/model" --model wam-tiny-pusht=model_cards/wam-tiny-pusht \
  --data "$out/shards" --output "$out/evaluate"
cp "$out/evaluate/report.html" "$out/report.html"
printf '\nOpen %s/report.html in a browser.\n' "$PWD/$out"
