#!/usr/bin/env bash
# From nothing to a page that shows every mode: make data, train, stop, resume, generate, evaluate. No GPU, no hub, no root.
# Usage: bash launch/quickstart.sh         everything lands in runs/quickstart (delete it to start over)
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/install.sh train,data,sim
export PATH="$PWD/.venv/bin:$PATH" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false SDL_VIDEODRIVER=dummy
out=runs/quickstart
steps=${STEPS:-400}
say() { printf '\n== %s\n' "$*"; }

say "1/5 data: a scripted pusher of varied skill in the PushT simulator, written as shards"
[ -f "$out/shards/manifest.json" ] || wam-video data convert "pusht:episodes=${EPISODES:-60}" --format pusht --output "$out/shards"
wam-video data inspect "$out/shards" --output "$out/data"

say "2/5 train half of $steps steps, stop, and go on with the same command"
run=(configs/recipe/quickstart.yaml "data.datasets.pusht.path=$out/shards" "output=$out/train" "max_steps=$steps")
wam-video train "${run[@]}" "stop_after=$((steps / 2))"
wam-video train "${run[@]}"

say "3/5 every mode, from the committed checkpoint, on an episode that it has not seen"
for mode in policy forward inverse video joint; do
  wam-video generate --model model_cards/wam-tiny-pusht --mode "$mode" --input "$out/shards" --episode 0 --seed 0 --output "$out/generate/$mode"
done

say "4/5 measure the short run just made"
wam-video evaluate --model "$out/train/export" --data "$out/shards" --output "$out/evaluate/short_run"

say "5/5 measure the committed checkpoint, beside the short run"
wam-video evaluate --model model_cards/wam-tiny-pusht --data "$out/shards" --output "$out/evaluate/wam-tiny-pusht"
cp "$out/evaluate/wam-tiny-pusht/report.html" "$out/report.html"
printf '\nOpen %s/report.html in a browser.\n' "$PWD/$out"
