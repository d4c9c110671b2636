#!/usr/bin/env bash
# Measures what a GPU makes of ccdstream: tools/bench_gpu.py, from a checkout that nobody installed.
#
#   tools/gpu/bench.sh --out DIR [--wheels DIR] [--minutes 9] [--resume] [--commit ID] [--dry-run]
#
#   --out       folder for bench.json, bench.md and bench.log
#   --wheels    folder of wheels that this Python lacks
#   --minutes   begin no row later than that; those that are missing then say so
#   --resume    measure what DIR does not have yet
#   --commit    of this checkout, where git cannot tell
#   --dry-run   tiny, on the CPU: no figure means anything

set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

out='' wheels='' minutes=9 dry=()
more=()
while [ $# -gt 0 ]; do
    case $1 in
    --out) out=$(value_of "$1" $# "${2-}"); shift 2 ;;
    --wheels) wheels=$(value_of "$1" $# "${2-}"); shift 2 ;;
    --minutes) minutes=$(value_of "$1" $# "${2-}"); shift 2 ;;
    --commit) more+=("$1" "$(value_of "$1" $# "${2-}")"); shift 2 ;;
    --resume) more+=("$1"); shift ;;
    --dry-run) dry=("$1"); shift ;;
    -h | --help) usage; exit ;;
    *) fail "no option $1. See --help." ;;
    esac
done
[ -n "$out" ] || fail "--out DIR is missing. See --help."
is_minutes --minutes "$minutes"

mkdir -p "$out"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
use_wheels "$wheels" "$scratch/site"
"$python" -m tools.bench_gpu --out "$out" --minutes "$minutes" "${more[@]}" "${dry[@]}" \
    2> >(tee "$out/bench.log" >&2)
