#!/usr/bin/env bash
# The paired gate as CI runs it: against BASE, or, where none is named, the parent commit.
#
#     scripts/paired_gate.sh [BASE] [-- OPTIONS OF gate paired...]
#
# Fails for a regression (1) and for a gate that broke or was used wrongly (2), a BASE that is not here included. No
# verdict (3), and no parent commit to build, do not fail; both are said.
set -euo pipefail
cd "$(dirname "$0")/.."

say() {
    if [ "${GITHUB_ACTIONS:-}" = true ]; then echo "::warning title=perf-gate::$1"; else echo "$1"; fi
}

base=HEAD~1 named=false
if [ $# -gt 0 ] && [ "$1" != -- ]; then
    base=$1 named=true
    shift
fi
case $base in
    '' | -*)
        echo "usage: $0 [BASE] [-- OPTIONS OF gate paired...]; BASE is a git revision, not '$base'" >&2
        exit 2
        ;;
esac
if [ "${1:-}" = -- ]; then shift; fi

if ! $named && ! git rev-parse --verify --quiet "$base^{commit}" >/dev/null 2>&1; then
    say "the paired gate did NOT RUN: $base is not here (no git history, or a shallow clone: fetch more of it)"
    exit 0
fi
code=0
.venv/bin/zipvl-compile gate paired --base "$base" --out build/gate/paired "$@" || code=$?
if [ "$code" -eq 3 ]; then
    say "the paired gate came to NO VERDICT on this machine: neither a regression nor its absence was shown"
    exit 0
fi
exit "$code"
