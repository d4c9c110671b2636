#!/usr/bin/env bash
# Trains the paper's schedule as far as a time goes, and again later and elsewhere from there.
#
#   tools/gpu/train.sh --data DIR --out DIR [--minutes 8] [--resume] [--carry DIR] [--light]
#                      [--piece-mib 16] [--preset paper] [--set KEY=VALUE]... [--wheels DIR]
#   tools/gpu/train.sh --out DIR --dry-run
#
#   --data       normal frames, as `ccdstream train` takes them
#   --out        the run's folder lies in it, and the log; the bundle, once all is done
#   --minutes    then the training saves and stops: allow a minute more
#   --resume     go on with the run in --out, or with the pieces in --carry where it has none
#   --carry      folder (OUT/carry): the checkpoints that this call wrote, in pieces; the metrics,
#                the log, and how fast the stages are (bench_train.json, of the first call)
#   --light      pieces without the momentum of pre-training: half as large
#   --piece-mib  most MiB in a piece
#   --wheels     folder of wheels that this Python lacks
#   --dry-run    about a minute on a CPU: drawn stills and the smoke preset; stops in a
#                pre-training, goes on elsewhere from the pieces alone, and sees that it did
#
# It is `ccdstream train`: whole frames are pre-trained and get their detector, then patches and
# theirs (--set scales=local: patches alone). To go on elsewhere, bring --data, and of --carry every
# piece: those of a stage that was done before are not written again.

set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

data='' out='' wheels='' carry='' minutes=8 preset=paper piece=16M
resume='' light='' dry=''
settings=()
while [ $# -gt 0 ]; do
    case $1 in
    --data) data=$(value_of "$1" $# "${2-}"); shift 2 ;;
    --out) out=$(value_of "$1" $# "${2-}"); shift 2 ;;
    --carry) carry=$(value_of "$1" $# "${2-}"); shift 2 ;;
    --minutes) minutes=$(value_of "$1" $# "${2-}"); shift 2 ;;
    --piece-mib)
        [[ ${2-} =~ ^[1-9][0-9]{0,3}$ ]] || fail "--piece-mib needs whole MiB, from 1."
        piece=$2M
        shift 2
        ;;
    --preset) preset=$(value_of "$1" $# "${2-}"); shift 2 ;;
    --set) settings+=("$1" "$(value_of "$1" $# "${2-}")"); shift 2 ;;
    --wheels) wheels=$(value_of "$1" $# "${2-}"); shift 2 ;;
    --resume) resume=yes; shift ;;
    --light) light=yes; shift ;;
    --dry-run) dry=yes; shift ;;
    -h | --help) usage; exit ;;
    *) fail "no option $1. See --help." ;;
    esac
done
[ -n "$out" ] || fail "--out DIR is missing. See --help."
[ -n "$data" ] || [ -n "$dry" ] || fail "--data DIR is missing. See --help."
[ -z "$data" ] || [ -d "$data" ] || fail "--data $data is no folder."
is_minutes --minutes "$minutes"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
use_wheels "$wheels" "$scratch/site"

join() { # CARRY RUN: puts the run's folder together from the pieces and the rest in CARRY
    local first name sum whole
    compgen -G "$1/*.pt.*.000" >/dev/null || fail "--resume: no run in --out, no pieces in $1."
    mkdir -p "$2"
    cp "$1/config.json" "$2/" || fail "$1 lacks config.json, which every call leaves there."
    [ ! -f "$1/metrics.jsonl" ] || cp "$1/metrics.jsonl" "$2/"
    for first in "$1"/*.pt.*.000; do
        whole=${first%.000} # STAGE.pt.SUM
        sum=${whole##*.} name=$(basename "${whole%.*}")
        [ ! -e "$2/$name" ] || fail "$1 has pieces of two states of $name. Remove the older ones."
        cat "$whole".??? >"$2/$name.joined"
        [ "$(checksum "$2/$name.joined")" = "$sum" ] ||
            fail "the pieces of $name in $1 do not make it whole. Bring every one of them."
        mv "$2/$name.joined" "$2/$name"
    done
}

checksum() { # FILE: the first 16 digits of its SHA-256
    sha256sum "$1" | cut -c 1-16
}

cut_up() { # CHECKPOINT CARRY PIECE_SIZE: leaves its pieces in CARRY, and none of an earlier state
    local file=$1 name
    name=$(basename "$file")
    if [ -n "$light" ]; then
        "$python" "$root/tools/gpu/lighten.py" "$file" "$scratch/$name"
        file=$scratch/$name
    fi
    rm -f "$2/$name".*.???
    split --bytes "$3" --numeric-suffixes --suffix-length 3 "$file" "$2/$name.$(checksum "$file")."
    rm -f "$scratch/$name"
}

# One call's work. DATA OUT CARRY SECONDS PIECE_SIZE RESUME(yes or nothing), then settings of train
piece_of_training() {
    local data=$1 out=$2 carry=$3 seconds=$4 size=$5 again=$6 status=0 run checkpoint
    shift 6
    run=$out/$preset.ccdstream.run
    mkdir -p "$out" "$carry"
    if [ -n "$again" ] && [ ! -f "$run/config.json" ]; then
        rm -rf "$scratch/joined"
        join "$carry" "$scratch/joined"
        mkdir -p "$run"
        mv "$scratch/joined"/* "$run/"
        [ ! -f "$carry/train.log" ] || cp "$carry/train.log" "$out/" # it goes on
    fi
    touch "$scratch/started"
    timeout --signal=INT --kill-after=120 "$seconds" "$python" -m ccdstream train "$data" \
        --output "$out/$preset.ccdstream" --preset "$preset" ${again:+--resume} "$@" \
        2>&1 | tee -a "$out/train.log" || status=${PIPESTATUS[0]}
    while read -r checkpoint; do
        cut_up "$checkpoint" "$carry" "$size"
    done < <(find "$run" -maxdepth 1 -name '*.pt' -newer "$scratch/started")
    for file in "$run/config.json" "$run/metrics.jsonl" "$out/train.log"; do
        [ ! -f "$file" ] || cp "$file" "$carry/"
    done
    case $status in
    0) echo "done: $out/$preset.ccdstream" ;;
    124) echo "the time is up; go on with --resume. Pieces in $carry" ;;
    *) fail "ccdstream train ended with $status; see $out/train.log. What it saved is in $carry." ;;
    esac
}

if [ -z "$dry" ]; then
    carry=${carry:-$out/carry}
    if [ -z "$resume" ]; then
        mkdir -p "$out" "$carry"
        "$python" "$root/tools/bench_train.py" "$data" --preset "$preset" "${settings[@]}" \
            --json "$carry/bench_train.json" 2>&1 | tee -a "$out/train.log"
    fi
    piece_of_training "$data" "$out" "$carry" $((60 * minutes)) "$piece" "$resume" "${settings[@]}"
    exit
fi

preset=smoke
rm -rf "$out/here" "$out/there" "$out/carry"
mkdir -p "$out"
"$python" "$root/tools/gpu/stills.py" "$out/stills"
"$python" "$root/tools/bench_train.py" "$out/stills" --preset smoke --steps 1 --rounds 1 \
    --json "$out/bench_train.json"
endless=(--set global_pretrain.steps=1000000)
piece_of_training "$out/stills" "$out/here" "$out/carry" 12 64K '' "${endless[@]}"
pieces=$(find "$out/carry" -name '*.pt.*.???' | wc -l)
[ "$pieces" -gt 1 ] || fail "expected the checkpoint in several pieces, got $pieces."
piece_of_training "$out/stills" "$out/there" "$out/carry" 12 64K yes "${endless[@]}"
went_on=$(grep -c 'pretrain_global: goes on at step [1-9]' "$out/there/train.log" || true)
[ "$went_on" -gt 0 ] || fail "the second call did not go on; see $out/there/train.log."
echo "dry run passed: went on elsewhere from $pieces pieces"
