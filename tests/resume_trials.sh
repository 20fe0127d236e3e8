#!/usr/bin/env bash
# Kills the quickstart at random moments, resumes it until it is done, and compares its adapter with an uninterrupted one's.
#
#   tests/resume_trials.sh [BINARY [COUNT [ARGUMENT...]]]
#
#   BINARY    default: target/release/equipoise
#   COUNT     runs to try; default: 20
#   ARGUMENT  more arguments of `train`, such as: --set training.max_steps=60
#
# A line for each run: how often it was killed and after how many seconds, how many of the kills left a checkpoint
# half-written, and whether adapter and metrics are the same. SEED=N decides the moments (default: 1), RECIPE=FILE the recipe
# (default: recipes/quickstart.yaml). The exit code is 0 when all runs are the same.
set -euo pipefail
cd "$(dirname "$0")/.."

binary=$(realpath "${1:-target/release/equipoise}")
count=${2:-20}
shift $(($# < 2 ? $# : 2))
recipe=${RECIPE:-recipes/quickstart.yaml}
RANDOM=${SEED:-1}

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# Neither another build nor another branch must change under us what is run.
cp "$binary" "$folder/equipoise"
cp "$recipe" "$folder/"
recipe=$folder/$(basename "$recipe")

train() { # OUTPUT ARGUMENT...
    local out=$1
    shift
    "$folder/equipoise" train "$recipe" --quiet --set output_dir="$out" "$@"
}

# What a run comes to: the adapter's bytes, and the metrics without what the clock and the memory decide.
result() { # OUTPUT
    sha256sum <"$1/adapter_model.safetensors"
    grep -v '"type":"run"' "$1/metrics.jsonl" | sed -E 's/"(tokens_per_second|peak_memory|time)":[^,}]*,?//g' | sha256sum
}

begin=$(date +%s%N)
train "$folder/whole" "$@" >"$folder/log" 2>&1 || {
    cat "$folder/log"
    exit 1
}
whole_ms=$((($(date +%s%N) - begin) / 1000000))
expected=$(result "$folder/whole")
printf 'uninterrupted: %d.%03d s, adapter %s\n' $((whole_ms / 1000)) $((whole_ms % 1000)) "${expected:0:16}"

same=0
for ((run = 1; run <= count; run++)); do
    out=$folder/run
    rm -rf "$out"
    kills=() half=0
    for ((kill = 0; kill < 1 + RANDOM % 4; kill++)); do
        # Within the first half of the time of a whole run, for a resumed one takes less. 15 random bits twice, so that long
        # runs are met evenly.
        ms=$(((RANDOM * 32768 + RANDOM) % (whole_ms / 2)))
        "$folder/equipoise" train "$recipe" --quiet --set output_dir="$out" "$@" --resume >"$folder/log" 2>&1 &
        process=$!
        sleep "$((ms / 1000)).$(printf %03d $((ms % 1000)))"
        if kill -KILL "$process" 2>/dev/null; then
            kills+=("$((ms / 1000)).$(printf %03d $((ms % 1000)))s")
        else
            kills+=("done") # It was over before the kill.
        fi
        { wait "$process" || true; } 2>/dev/null
        compgen -G "$out/checkpoints/.tmp-*" >/dev/null && half=$((half + 1))
    done
    if ! train "$out" "$@" --resume >"$folder/log" 2>&1; then
        printf 'run %2d: killed %s: FAILED to resume\n' "$run" "${kills[*]}"
        cat "$folder/log"
        continue
    fi
    litter=$(find "$out" -name '.tmp-*' | wc -l)
    if [[ $(result "$out") == "$expected" && $litter == 0 ]]; then
        same=$((same + 1)) outcome="the same"
    else
        outcome="DIFFERENT ($litter files half-written)"
    fi
    printf 'run %2d: killed %d× (%s; %d within a checkpoint): %s\n' "$run" "${#kills[@]}" "${kills[*]}" "$half" "$outcome"
done
printf '%d of %d runs end in the same bytes\n' "$same" "$count"
((same == count))
