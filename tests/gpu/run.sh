#!/usr/bin/env bash
# All that needs a GPU, in one call under ten minutes: README.md beside this file.
#   run.sh [--binary PATH] [--gpu-binary PATH] [--out FOLDER] [--only PART,...] [--dry-run] ...
# Without --binary it builds. A binary or a model may be packed (.xz). equipoise-gpu is looked for beside the binary.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)

fail() {
    printf 'run.sh: %s\n' "$*" >&2
    exit 2
}

said=tests/gpu/run.sh
for word in "$@"; do said+=" $(printf %q "$word")"; done
binary='' gpu_binary='' model='' python=${PYTHON:-python3} dry=''
rest=()
while [ $# -gt 0 ]; do
    case $1 in
        --binary | --gpu-binary | --model | --python)
            [ $# -ge 2 ] || fail "$1 needs a path"
            case $1 in
                --binary) binary=$2 ;;
                --gpu-binary) gpu_binary=$2 ;;
                --model) model=$2 ;;
                --python) python=$2 ;;
            esac
            shift
            ;;
        --dry-run) dry=yes rest+=("$1") ;;
        # The path is the caller's, and the parts run elsewhere.
        --out)
            [ $# -ge 2 ] || fail "$1 needs a path"
            rest+=("$1" "$(realpath -m -- "$2")")
            shift
            ;;
        --out=* | --model=* | --binary=* | --gpu-binary=* | --python=*) fail "write ${1%%=*} PATH, without =" ;;
        -h | --help) rest+=(--help) dry=yes ;;
        *) rest+=("$1") ;;
    esac
    shift
done
command -v "$python" >/dev/null || fail "no $python: name an interpreter by --python"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Unpacks file $1 to $2: by xz, or where there is none by Python.
unpack() {
    if command -v xz >/dev/null && xz -dc -- "$1" >"$2"; then return; fi
    "$python" -c 'import lzma, shutil, sys; shutil.copyfileobj(lzma.open(sys.argv[1]), sys.stdout.buffer)' "$1" >"$2" ||
        fail "$1 cannot be unpacked, neither by xz nor by Python's lzma"
}

# A program that can be run: what is packed is unpacked, what lost its mode in a transfer gets it back in a copy.
ready() {
    [ -f "$1" ] || fail "no such file: $1"
    local name
    name=$work/$(basename "$1" .xz)
    case $1 in
        *.xz) unpack "$1" "$name" ;;
        *)
            if [ -x "$1" ]; then
                realpath -- "$1"
                return
            fi
            cp -- "$1" "$name"
            ;;
    esac
    chmod +x "$name"
    printf '%s\n' "$name"
}

if [ -n "$model" ]; then
    [ -e "$model" ] || fail "no such file: $model"
    case $model in
        *.xz)
            unpack "$model" "$work/$(basename "$model" .xz)"
            model=$work/$(basename "$model" .xz)
            ;;
    esac
    rest+=(--model "$(realpath -- "$model")")
fi

# What is wrong with the arguments shows before minutes of building.
if [ -z "$dry" ]; then GPU_RUN_LOOK=yes GPU_RUN_SAID=$said "$python" "$here/parts.py" "${rest[@]}"; fi

if [ -z "$binary" ] && [ -z "$dry" ]; then
    printf '+ cargo build --release --features cuda\n' >&2
    (cd "$root" && cargo build --release --features cuda --bins --examples)
    target=${CARGO_TARGET_DIR:-$root/target}/release
    binary=$target/equipoise
    for place in "$target/equipoise-gpu" "$target/examples/equipoise-gpu"; do
        if [ -z "$gpu_binary" ] && [ -f "$place" ]; then gpu_binary=$place; fi
    done
fi
if [ -n "$binary" ] && [ -z "$gpu_binary" ]; then
    folder=$(dirname "$binary")
    for place in "$folder"/equipoise-gpu{,.xz} "$folder"/examples/equipoise-gpu{,.xz}; do
        if [ -z "$gpu_binary" ] && [ -f "$place" ]; then gpu_binary=$place; fi
    done
fi
if [ -n "$binary" ]; then
    binary=$(ready "$binary")
    rest+=(--binary "$binary")
fi
if [ -n "$gpu_binary" ]; then
    gpu_binary=$(ready "$gpu_binary")
    rest+=(--gpu-binary "$gpu_binary")
elif [ -z "$dry" ]; then
    fail "no equipoise-gpu beside $binary: name it by --gpu-binary"
fi

# A signal to this script alone reaches Python too, which ends what it has started. In the background it ignores SIGINT.
child=''
trap '[ -n "$child" ] || exit 143; kill -TERM "$child" 2>/dev/null || true' TERM INT HUP
GPU_RUN_SAID=$said "$python" "$here/parts.py" "${rest[@]}" &
child=$!
while :; do
    code=0
    wait "$child" || code=$?
    # A signal ends the wait, but not yet Python.
    kill -0 "$child" 2>/dev/null || break
done
exit "$code"
