#!/bin/sh
# Place one order over HTTP and wait for its end: order.sh KEY COLOR.
# DARKROOM_URL is the address of the producer, DARKROOM_TOKEN a token if it wants one.
set -eu

call() {
    curl -sS --retry 5 --retry-connrefused ${DARKROOM_TOKEN:+-H "Authorization: Bearer $DARKROOM_TOKEN"} "$@"
}

order='{"idempotency_key": "'$1'", "pool": "comfyui", "workflow": "solid-invert", "inputs": {"color": '$2'}}'

# The same order again is the same order, so curl may repeat what was not answered or not confirmed (503).
accepted=$(call --fail-with-body -H 'Content-Type: application/json' -d "$order" "$DARKROOM_URL/v1/orders") || {
    echo "$accepted" >&2
    exit 2
}
status_url=$(echo "$accepted" | sed -n 's/.*"status_url":"\([^"]*\)".*/\1/p')

while true; do
    answer=$(call "$DARKROOM_URL$status_url") # 404 at first: not claimed yet
    case $answer in
        *'"status":"completed"'*) echo "$answer" && exit 0 ;;
        *'"status":"failed"'* | *'"status":"cancelled"'*) echo "$answer" && exit 1 ;;
    esac
    sleep 1
done
