#!/usr/bin/env bash
# Everything that only a GPU can show, on any CUDA machine whose python3 has torch, triton and transformers; nothing is
# installed. JSON per stage and report.md under --out; a later call goes on where this one ended.
#
#     scripts/gpu_suite.sh [--out DIR] [--limit SECONDS] [--fresh] [--rehearse] [STAGE...]
#
# Stages: environment correctness micro prefill decode tune. PYTHON names another interpreter. docs/gpu.md says more.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=plugins:serving:.${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
case " $* " in *" --rehearse "*) export TRITON_INTERPRET=1 ;; esac
exec "${PYTHON:-python3}" -m benchmarks.gpu.suite "$@"
