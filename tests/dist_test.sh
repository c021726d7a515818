#!/usr/bin/env bash
# A wheel and an sdist that work without the repository: built here, installed into an empty
# environment each, and used in an empty folder. Some minutes, most of it installing.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
uv=$root/.venv/bin/uv
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
say() { echo "dist-test: $*"; }
cd "$work"

"$uv" build --quiet --no-build-isolation --python "$root/.venv/bin/python" --out-dir dist "$root"
ls -l dist
# The versions that are pinned, without the hashes, which a file just built cannot have.
grep -oE '^[A-Za-z0-9_.-]+==[^ ]+( ; .*)?' "$root/requirements/dev.lock" | sed 's/ *\\$//' >pinned.txt

install() { # NAME FILE: an environment with nothing but this file and what it asks for
  "$uv" venv --quiet --python "$root/.venv/bin/python" "$1"
  "$uv" pip install --quiet --python "$1/bin/python" --constraint pinned.txt "$2"
}

expect() { # FILE TEXT
  grep -q "$2" "$1" || { say "no \"$2\" in $1:"; cat "$1"; exit 1; }
}

try() { # NAME: what a newcomer types; nothing of the repository is in reach
  mkdir "try-$1" && cd "try-$1"
  local bin=$work/$1/bin
  "$bin/python" - <<'PY'
import torch

from rankdet.losses import alrp_loss

logits = torch.tensor([2.0, -1.0, 0.5], requires_grad=True)
loss = alrp_loss(logits, torch.tensor([1, 0, 0]), torch.tensor([0.3]))
(loss.classification + loss.localisation).backward()
assert logits.grad is not None and logits.grad.isfinite().all()
PY
  "$bin/rankdet" recipes >recipes.txt
  expect recipes.txt atss_alrp-small
  "$bin/rankdet" demo --quick --set schedule.steps=20 >demo.txt
  test -s rankdet-demo/quick/report.html
  test -s rankdet-demo/quick/best.safetensors
  "$bin/rankdet" evaluate rankdet-demo/quick --data rankdet-demo/digits-quick >evaluate.txt
  expect evaluate.txt LRP
  "$bin/rankdet" tables a2 --data rankdet-demo/digits-quick --scale tiny --dry-run >tables.txt
  expect tables.txt "6 of 6 runs are left"
  "$bin/rankdet" export rankdet-demo/quick --format torchscript --out model >/dev/null
  cd ..
  say "$1 works"
}

install wheel dist/*.whl
try wheel
install sdist dist/*.tar.gz
try sdist
say passed
