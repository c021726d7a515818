#!/usr/bin/env bash
# Install Debian's Chromium for the tests of the HTML report (tests/eval/test_report_in_browser.py),
# which are skipped where no browser is found. Half a gigabyte, about a minute. The status says
# whether there is a browser in the end.
set -euo pipefail

say() { echo "browser: $*"; }
# The reason, and what a person can do instead.
give_up() {
  say "$*" >&2
  say "the tests of the report in a browser will be skipped." >&2
  exit 1
}

# Those that the tests look for.
for name in chromium chromium-browser google-chrome; do
  if command -v "$name" >/dev/null; then
    say "$(command -v "$name") is here already."
    exit 0
  fi
done

command -v apt-get >/dev/null ||
  give_up "this script knows apt-get only, and there is none. Install Chromium by hand."
if [ "$(id -u)" = 0 ]; then
  as_root=(env)
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
  as_root=(sudo -n env)
else
  give_up "installing needs root, and sudo would ask for a password." \
    "Run: sudo apt-get install --no-install-recommends chromium"
fi

# Without a network it should say so soon instead of trying for minutes.
apt=("${as_root[@]}" DEBIAN_FRONTEND=noninteractive apt-get
  -o Acquire::Retries=1 -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20
  -o DPkg::Lock::Timeout=120)
"${apt[@]}" -qq update || say "the lists of packages could not be renewed; trying the old ones."
# Ubuntu has it as a snap, which its package `chromium-browser` would fetch; that is left alone.
[[ $(apt-cache policy chromium) =~ Candidate:\ [0-9] ]] ||
  give_up "apt-get knows no package chromium here. Install Chromium or Google Chrome by hand."
"${apt[@]}" -qq install -y --no-install-recommends chromium >/dev/null ||
  give_up "apt-get could not install chromium; its message is above."
say "installed $(chromium --version 2>/dev/null)"
