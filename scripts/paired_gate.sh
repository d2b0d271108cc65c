#!/usr/bin/env bash
# The paired gate as CI runs it: against BASE, or the parent commit.
#
#     scripts/paired_gate.sh [BASE] [OPTIONS OF gate paired...]
#
# Fails for a regression (1) and for a gate that broke (2). No verdict (3), and no history to build a base from, do not
# fail; both are said.
set -euo pipefail
cd "$(dirname "$0")/.."
base=${1:-HEAD~1}
shift || true

if ! git rev-parse --verify --quiet --end-of-options "$base^{commit}" >/dev/null 2>&1; then
    echo "NOT RUN: the paired gate: $base is not here (no git history, or a shallow clone: fetch more of it)"
    exit 0
fi
code=0
.venv/bin/zipvl-compile gate paired --base "$base" --out build/gate/paired "$@" || code=$?
if [ "$code" -eq 3 ]; then
    said="the paired gate came to NO VERDICT on this machine: neither a regression nor its absence was shown"
    if [ "${GITHUB_ACTIONS:-}" = true ]; then echo "::warning title=perf-gate::$said"; else echo "$said"; fi
    exit 0
fi
exit "$code"
