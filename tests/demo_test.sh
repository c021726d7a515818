#!/usr/bin/env bash
# What a newcomer does: clone into an empty folder, run both commands of the README, look at the
# result. Takes about twenty minutes on two cores, most of it the tests. Arguments go to
# `rankdet demo` (--quick).
set -euo pipefail
unset ARGS MAKEFLAGS MAKEOVERRIDES # a newcomer's commands know nothing of how this script was called
source=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
git clone --quiet "$source" "$work/rankdet"
cd "$work/rankdet"
make demo ARGS="${*:-}" | tee "$work/demo.txt"
folder=rankdet-demo/run
[ -d "$folder" ] || folder=rankdet-demo/quick
for file in report.html best.safetensors detections.json score.json; do
  test -s "$folder/$file" || { echo "demo-test: $folder/$file is missing" >&2; exit 1; }
done
ls "$folder"/pictures/*.png >/dev/null
least=$([ "$folder" = rankdet-demo/quick ] && echo 0.37 || echo 0.71)
.venv/bin/python - "$folder/score.json" "$least" <<'PY'
import json
import sys

ap, least = json.load(open(sys.argv[1]))["AP"], float(sys.argv[2])
print(f"demo-test: AP {ap:.3f}, at least {least:.2f} wanted")
sys.exit(ap < least)
PY
make test
echo "demo-test: passed"
