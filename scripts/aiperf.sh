#!/usr/bin/env bash
# Drive the gateway over a bundle with aiperf: chat, images, streaming. aiperf needs an environment of its own, because it
# pins older packages than ours; it is made on first use.
#
#     scripts/aiperf.sh BUNDLE [REQUESTS] [CONCURRENCY]
#
# Fails unless every request ended well; 75 where aiperf cannot be installed. ENGINE=triton puts a Triton server behind
# the gateway.
set -euo pipefail
bundle=$(realpath "$1") requests=${2:-64} concurrency=${3:-8} engine=${ENGINE:-embedded}
root=$(cd "$(dirname "$0")/.." && pwd)
aiperf=$root/.venv-aiperf/bin
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || { kill "$server" && wait "$server"; } || true; rm -rf "$work"' EXIT

if [ ! -x "$aiperf/aiperf" ]; then
    "${PYTHON:-python3}" -m venv "$root/.venv-aiperf"
    "$aiperf/pip" install --quiet aiperf==0.13.0 || exit 75
fi

: >"$work/serve.log"
ports=(--gateway-port 0)
[ "$engine" = embedded ] || ports+=(--http-port 0 --grpc-port 0 --metrics-port 0)
"$root/.venv/bin/zipvl-compile" serve "$bundle" --engine "$engine" "${ports[@]}" >"$work/serve.log" 2>&1 &
server=$!
until grep -q '^gateway: ' "$work/serve.log"; do
    kill -0 "$server" || { cat "$work/serve.log"; exit 1; }
    sleep 0.2
done
url=$(sed -n 's|^gateway: \(http://[^/]*\)/v1.*|\1|p' "$work/serve.log")
model=$(sed -n 's|.*(model \(.*\))$|\1|p' "$work/serve.log")

cd "$work" # it keeps logs where it runs
HOME=$work "$aiperf/aiperf" profile --model "$model" --url "$url" --endpoint-type chat --streaming \
    --tokenizer "$bundle/processor" --use-server-token-count \
    --concurrency "$concurrency" --request-count "$requests" \
    --synthetic-input-tokens-mean 20 --output-tokens-mean 16 --extra-inputs ignore_eos:true \
    --image-width-mean 48 --image-height-mean 48 --image-batch-size 1 \
    --artifact-dir "$work/out" --ui simple >"$work/aiperf.log" 2>&1 || { tail -20 "$work/aiperf.log"; exit 1; }
"$aiperf/python" - "$work/out/profile_export_aiperf.json" "$requests" <<'PYTHON'
import json, sys

figures = json.load(open(sys.argv[1]))
done = int(figures["request_count"]["avg"])
keys = ("time_to_first_token", "inter_token_latency", "request_latency")
lines = (f"{key}: p50 {figures[key]['p50']:.1f}, p99 {figures[key]['p99']:.1f} {figures[key]['unit']}" for key in keys)
print(f"aiperf: {done} of {sys.argv[2]} requests ended well,", "; ".join(lines))
sys.exit(done != int(sys.argv[2]))
PYTHON
