#!/bin/sh
# Run a pipeline from cron: one run at a time, a log that rotates, an exit code that says what happened, silence when all is well.
#   scripts/refresh.sh configs/pipelines/cron_refresh.yaml --output /srv/collection       (arguments are those of `llmpipe run`)
#   17 3 * * *  /srv/llmpipe/scripts/refresh.sh configs/pipelines/cron_refresh.yaml --output /srv/collection
# Exit: 0 done, or nothing was new; 75 the run before is still at work; 143 stopped by SIGTERM, the next run goes on;
#       1 failed, 2 wrong settings, 3 input missing or broken. On failure the end of the log goes to stderr, which cron mails.
# Environment: LLMPIPE_LOG_DIR (logs), LLMPIPE_LOG_BYTES (10000000: a longer log is rotated), LLMPIPE_LOG_KEEP (14 old ones, gzipped).
set -u
cd "$(dirname "$0")/.." || exit 1
[ $# -gt 0 ] || { echo "usage: scripts/refresh.sh PIPELINE.yaml [arguments of llmpipe run]" >&2; exit 2; }
python=.venv/bin/python
[ -x "$python" ] || { printf 'error: %s is missing\nhint: scripts/setup\n' "$PWD/$python" >&2; exit 2; }

logs=${LLMPIPE_LOG_DIR:-logs}
mkdir -p "$logs" || exit 1
log=$logs/$(basename "$1" .yaml).log
if command -v flock >/dev/null 2>&1; then   # without flock the lock of the run directory does the same, half a second later
  exec 9>>"$log.lock"
  flock -n 9 || { echo "refresh: another run is at work, see $log" >&2; exit 75; }
fi

keep=${LLMPIPE_LOG_KEEP:-14}
if [ -f "$log" ] && [ "$(wc -c < "$log")" -gt "${LLMPIPE_LOG_BYTES:-10000000}" ]; then
  n=$keep
  rm -f "$log.$n.gz"
  while [ "$n" -gt 1 ]; do
    [ ! -f "$log.$((n - 1)).gz" ] || mv "$log.$((n - 1)).gz" "$log.$n.gz"
    n=$((n - 1))
  done
  if [ "$keep" -gt 0 ]; then gzip -c "$log" > "$log.1.gz"; fi
  : > "$log"
fi

printf '%s start: llmpipe run %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$*" >> "$log"
start=$(wc -c < "$log")
"$python" -m llmpipe run "$@" >> "$log" 2>&1 9>&- &   # the lock is not handed down: a child that outlives us must not keep it
child=$!
trap 'kill -TERM "$child" 2>/dev/null' TERM INT HUP
wait "$child"
code=$?
while kill -0 "$child" 2>/dev/null; do   # a signal ends a wait early
  wait "$child"
  code=$?
done
if [ "$code" -ne 0 ] && [ "$code" -ne 75 ]; then
  tail -c "+$((start + 1))" "$log" | tail -n 20 >&2
fi
printf '%s end: exit code %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$code" >> "$log"
exit "$code"
