#!/bin/sh
# Place one order over HTTP and wait for its end: order.sh KEY COLOR. DARKROOM_URL is the address of the producer.
set -eu

order='{"idempotency_key": "'$1'", "pool": "comfyui", "workflow": "solid-invert", "inputs": {"color": '$2'}}'

# The same order again is the same order, so curl may repeat what was not answered or not confirmed (503).
accepted=$(curl -sS --fail-with-body --retry 5 --retry-connrefused \
    -H 'Content-Type: application/json' -d "$order" "$DARKROOM_URL/v1/orders") || { echo "$accepted" >&2 && exit 2; }
status_url=$(echo "$accepted" | sed -n 's/.*"status_url":"\([^"]*\)".*/\1/p')

while true; do
    answer=$(curl -sS --retry 5 --retry-connrefused "$DARKROOM_URL$status_url") # 404 at first: not claimed yet
    case $answer in
        *'"status":"completed"'*) echo "$answer" && exit 0 ;;
        *'"status":"failed"'* | *'"status":"cancelled"'*) echo "$answer" && exit 1 ;;
    esac
    sleep 1
done
