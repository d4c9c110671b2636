#!/usr/bin/env bash
# Sees what works on this machine's GPU: TensorRT, every engine in every precision, the cuda tests.
#
#   tools/gpu/verify.sh --out DIR [--wheels DIR] [--minutes 9] [--resume] [--dry-run]
#
#   --out       folder for verify.md, a row for each step, and what each printed
#   --wheels    folder of wheels that this Python lacks
#   --minutes   begin no step later than that, and end there the one under way
#   --resume    leave out the steps that passed in DIR
#   --dry-run   on a CPU: every step is tried; those that need a GPU must say so, and no more
#
# Ends with 1 where a step failed that the machine should pass. With a GPU that is: one engine at
# least that runs and is in parity in half precision, and the tests.

set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

out='' wheels='' minutes=9 resume='' dry=''
while [ $# -gt 0 ]; do
    case $1 in
    --out) out=$(value_of "$1" $# "${2-}"); shift 2 ;;
    --wheels) wheels=$(value_of "$1" $# "${2-}"); shift 2 ;;
    --minutes) minutes=$(value_of "$1" $# "${2-}"); shift 2 ;;
    --resume) resume=yes; shift ;;
    --dry-run) dry=yes; shift ;;
    -h | --help) usage; exit ;;
    *) fail "no option $1. See --help." ;;
    esac
done
[ -n "$out" ] || fail "--out DIR is missing. See --help."
is_minutes --minutes "$minutes"

until=$((SECONDS + 60 * minutes))
mkdir -p "$out/logs"
[ -n "$resume" ] || rm -f "$out/steps"
touch "$out/steps"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
use_wheels "$wheels" "$scratch/site"
[ -z "$dry" ] || export CUDA_VISIBLE_DEVICES=
[ -n "$dry" ] || "$python" -c 'import sys, ccdstream.engine.gpu as g; sys.exit(g.find_gpus().problem or 0)' 2>/dev/null \
    || fail "there is no GPU here to verify. Try the steps on a CPU with --dry-run."
"$python" -c 'import pytest' 2>/dev/null \
    || fail "this Python lacks pytest, which runs the cuda tests. Install it, or bring it by --wheels."

failed=() # steps of this call
step() { # NAME COMMAND...: runs it and notes how it ended, with the last line that it printed
    local name=$1 status=0 said
    shift
    if grep -q "^$name	passed	" "$out/steps"; then
        return 0
    fi
    local log=$out/logs/${name//[^a-z0-9]/-}.log
    if [ $SECONDS -ge $until ]; then
        status=124
    else
        timeout --kill-after=20 $((until - SECONDS)) "$@" >"$log" 2>&1 </dev/null || status=$?
    fi
    case $status in
    0) said=passed ;;
    124) said='not done' ;;
    *) said=failed ;;
    esac
    local line='the time was up; go on with --resume'
    [ "$said" = 'not done' ] || line=$(sed '/^[[:space:]]*$/d' "$log" | tail -n 1 | cut -c 1-600)
    [ "$said" = passed ] || failed+=("$name")
    grep -v "^$name	" "$out/steps" >"$scratch/steps" || true
    printf '%s\t%s\t%s\n' "$name" "$said" "${line//$'\t'/ }" >>"$scratch/steps"
    mv "$scratch/steps" "$out/steps"
    echo "$name: $said: $line"
}
passed() { # NAME: whether that step has passed, in this call or before
    grep -q "^$1	passed	" "$out/steps"
}

step machine "$python" -m ccdstream doctor
for package in tensorrt tensorrt_rtx; do
    step "$package" "$python" "$root/tools/gpu/try_tensorrt.py" "$package"
done
step stills "$python" "$root/tools/gpu/stills.py" "$out/stills" --count 32 # what int8 learns from
step 'bundle on the CPU' "$python" -m ccdstream model verify --device cpu --calibration "$out/stills"
in_half=()
for precision in fp16 fp32 int8; do
    for engine in tensorrt torch torch-tensorrt onnxruntime; do
        case $engine/$precision in # engines without that precision
        onnxruntime/fp16 | onnxruntime/int8 | torch*/int8) continue ;;
        esac
        name="$engine in $precision"
        step "$name" "$python" -m ccdstream compile --engine "$engine" --precision "$precision" \
            --calibration "$out/stills"
        [ "$precision" != fp16 ] || ! passed "$name" || in_half+=("$engine")
    done
done
cd "$root"
mapfile -t tests < <(grep -l 'mark\.cuda' tests/test_*.py)
tell=() # on a machine that promised a GPU a test may not skip itself
[ -n "$dry" ] || tell=(CCDSTREAM_REQUIRE_CUDA=1)
if [ ${#tests[@]} -gt 0 ]; then
    step 'cuda tests' env "${tell[@]}" "$python" -m pytest -q -m cuda -p no:cacheprovider \
        "${tests[@]}"
fi

{
    if [ -n "$dry" ]; then
        printf '**A dry run on a CPU: it shows that the steps can be taken, and no more.**\n\n'
    fi
    printf '%s, commit %s\n\n' "$(date -u +%FT%TZ)" \
        "$(git -C "$root" describe --always --abbrev=40 --dirty=+changes 2>/dev/null || echo unknown)"
    sed 's/^/    /' "$out/logs/machine.log"
    printf '\n| step | | what it said last |\n| --- | --- | --- |\n'
    sed 's/|/\//g' "$out/steps" | awk -F '\t' '{ printf "| %s | %s | %s |\n", $1, $2, $3 }'
} | tee "$out/verify.md"

must=(machine stills 'bundle on the CPU')
[ ${#tests[@]} -eq 0 ] || must+=('cuda tests')
for name in "${must[@]}"; do
    passed "$name" || fail "the step '$name' did not pass; see $out/logs."
done
if [ -n "$dry" ]; then
    for name in "${failed[@]}"; do
        grep "^$name	failed	" "$out/steps" | grep -qiE 'no NVIDIA|no GPU|not installed|does not start|No module' ||
            fail "the step '$name' failed, and not for want of a GPU; see $out/logs."
    done
    echo 'dry run passed'
elif [ ${#in_half[@]} -eq 0 ]; then
    fail "no engine runs the default bundle in fp16 here; see $out/verify.md."
fi
