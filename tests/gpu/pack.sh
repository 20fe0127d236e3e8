#!/usr/bin/env bash
# Packs what run.sh needs on a machine without network, where only so much may be carried at once: README.md beside this file.
#   pack.sh [--binary PATH --gpu-binary PATH] [--model PATH] [--layers N] [--pieces] [--out FOLDER] [--python PATH]
# Into FOLDER (carry): both programs, built unless they are given, stripped and packed; the peer's wheel, without what is not
# needed; a model of the first N blocks of SmolLM2, packed. N is as many as fit; 0: no model.
# --pieces: the whole model too, packed, in pieces for several calls, into FOLDER-2.
# The exit code is 1 if a call would carry too much.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
limit=$((64 << 20)) margin=$((1 << 20))
bitsandbytes=0.50.2

fail() {
    printf 'pack.sh: %s\n' "$*" >&2
    exit 2
}

note() { printf 'pack.sh: %s\n' "$*" >&2; }

binary='' gpu_binary='' layers='' pieces='' out=$root/carry python=${PYTHON:-python3}
# Where parts.py looks for it, too.
model=${EQUIPOISE_SHARED:-$root/../shared}/models/smollm2-135m-instruct-gguf/SmolLM2-135M-Instruct.Q4_1.gguf
[ -f "$model" ] || model=''
while [ $# -gt 0 ]; do
    case $1 in
        --binary | --gpu-binary | --model | --layers | --out | --python)
            [ $# -ge 2 ] || fail "$1 needs a value"
            case $1 in
                --binary) binary=$2 ;;
                --gpu-binary) gpu_binary=$2 ;;
                --model) model=$2 ;;
                --layers) layers=$2 ;;
                --out) out=$2 ;;
                --python) python=$2 ;;
            esac
            shift
            ;;
        --pieces) pieces=yes ;;
        -h | --help)
            sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
            exit
            ;;
        *) fail "unknown: $1; see --help" ;;
    esac
    shift
done

for tool in git xz strip "$python"; do command -v "$tool" >/dev/null || fail "no $tool"; done
[ "${binary:+given}" = "${gpu_binary:+given}" ] || fail "--binary and --gpu-binary go together"
for path in "$binary" "$gpu_binary" "$model"; do
    [ -z "$path" ] || [ -f "$path" ] || fail "no such file: $path"
done
[[ $layers =~ ^[0-9]*$ ]] || fail "--layers: $layers is no number"
[ -z "$pieces" ] || [ -n "$model" ] || fail "--pieces: no model: name it by --model"
git -C "$root" rev-parse --git-dir >/dev/null 2>&1 || fail "$root is no git checkout, so what travels with it is not known"

mkdir -p "$out"
out=$(realpath "$out")
pieces_out=$out-2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

size() { stat -c %s -- "$1"; }

# The size of all files in folder $1; without models of some layers, if $2 is said.
folder_size() {
    find "$1" -type f ${2:+-not -name "*-layers*.gguf.xz"} -printf '%s\n' | awk '{ sum += $1 } END { print sum + 0 }'
}

# The size of what git tracks or does not ignore, without the two folders that are filled here.
tree_size() {
    local folder exclude=()
    for folder in "$out" "$pieces_out"; do
        folder=$(realpath -m --relative-to="$root" "$folder")
        [[ $folder == ..* ]] || exclude+=(":(exclude)$folder")
    done
    # A tracked file may be deleted.
    (cd "$root" && git ls-files -z --cached --others --exclude-standard -- . "${exclude[@]}" |
        { xargs -0 -r stat -c %s -- 2>/dev/null || true; }) | awk '{ sum += $1 } END { print sum + 0 }'
}

# --- the programs

pack_program() {
    local name=$1 path=$2
    if [[ $path == *.xz ]]; then
        cp -- "$path" "$out/$name.xz"
        return
    fi
    strip -o "$work/$name" -- "$path" || fail "$path cannot be stripped"
    local filter=()
    [ "$(uname -m)" != x86_64 ] || filter=(--x86)
    note "packing $name"
    xz "${filter[@]}" --lzma2=preset=9e -c -- "$work/$name" >"$work/$name.xz"
    mv -- "$work/$name.xz" "$out/$name.xz"
}

if [ -z "$binary" ]; then
    printf '+ cargo build --release --features cuda --bins --examples\n' >&2
    (cd "$root" && cargo build --release --features cuda --bins --examples)
    target=${CARGO_TARGET_DIR:-$root/target}/release
    binary=$target/equipoise
    for place in "$target/equipoise-gpu" "$target/examples/equipoise-gpu"; do
        if [ -z "$gpu_binary" ] && [ -f "$place" ]; then gpu_binary=$place; fi
    done
    [ -n "$gpu_binary" ] || fail "cargo made no equipoise-gpu"
fi
pack_program equipoise "$binary"
pack_program equipoise-gpu "$gpu_binary"

# --- the wheel

# It loads the library of torch's CUDA; the CPU's, which is small, only where there is no GPU, as in a dry run.
trim_wheel() {
    "$python" - "$1" "$2" <<'END'
import re
import sys
import zipfile

OTHERS = re.compile(r"bitsandbytes/libbitsandbytes_(?!cuda130\.|cpu\.)")
with zipfile.ZipFile(sys.argv[1]) as whole, zipfile.ZipFile(sys.argv[2], "w", zipfile.ZIP_DEFLATED, compresslevel=9) as part:
    for entry in whole.infolist():
        data = whole.read(entry)
        if OTHERS.match(entry.filename):
            continue
        if entry.filename.endswith(".dist-info/RECORD"):
            data = b"".join(line for line in data.splitlines(True) if not OTHERS.match(line.decode()))
        part.writestr(entry, data, zipfile.ZIP_DEFLATED, 9)
    if not any("cuda130" in name for name in part.namelist()):
        sys.exit("the wheel has no library for CUDA 13.0")
END
}

pack_wheel() {
    local known=("$out/bitsandbytes-$bitsandbytes-"*.whl)
    [ ! -f "${known[0]}" ] || return 0
    note "fetching bitsandbytes"
    "$python" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_24_x86_64 \
        -d "$work" "bitsandbytes==$bitsandbytes"
    local wheel
    wheel=$(basename "$work/bitsandbytes-$bitsandbytes-"*.whl)
    trim_wheel "$work/$wheel" "$work/trimmed"
    mv -- "$work/trimmed" "$out/$wheel"
}

pack_wheel

# --- the model

cut_model() {
    if ! "$python" -c 'import gguf' 2>/dev/null && [ ! -d "$work/site" ]; then
        note "fetching gguf"
        "$python" -m pip install -q --target "$work/site" gguf
    fi
    PYTHONPATH=$work/site${PYTHONPATH:+:$PYTHONPATH} "$python" "$here/cut_model.py" "$model" "$@"
}

# Makes the model of $1 blocks, packed, and sets `packed` to its place.
pack_cut_model() {
    mkdir -p "$work/cut"
    rm -f "$work/cut"/*
    note "packing a model of $1 blocks"
    cut_model --layers "$1" --out "$work/cut" >"$work/said"
    xz -6 "$work/cut"/*.gguf
    packed=("$work/cut"/*.gguf.xz)
}

# Sets `layers` to as many as fit. A block is taken as large as before it is packed, so there is room in the end.
choose_layers() {
    local sizes block room
    mapfile -t sizes < <(cut_model --sizes | awk '{ print $2 }')
    layers=1
    pack_cut_model 1
    [ "${#sizes[@]}" -gt 1 ] || return 0
    block=$((sizes[1] - sizes[0]))
    room=$((limit - margin - tree - $(folder_size "$out") - $(size "${packed[0]}")))
    if [ "$room" -ge "$block" ]; then layers=$((1 + room / block)); fi
    if [ "$layers" -gt "${#sizes[@]}" ]; then layers=${#sizes[@]}; fi
    [ "$layers" -eq 1 ] || pack_cut_model "$layers"
}

tree=$(tree_size)
rm -f "$out"/*-layers*.gguf.xz
if [ -n "$model" ] && [ "$layers" != 0 ]; then
    if [ -n "$layers" ]; then pack_cut_model "$layers"; else choose_layers; fi
    mv -- "${packed[0]}" "$out/"
elif [ -z "$model" ]; then
    note "no model: --model PATH, a GGUF file of SmolLM2-135M-Instruct"
fi

# --- the pieces

# Into as few pieces as fit, at least two: the first beside programs and wheel, the others alone. All calls keep as much room.
pack_pieces() {
    local whole=$work/model.xz total first other count=2 done=0 index next
    note "packing the whole model"
    xz -6 -c -- "$model" >"$whole"
    total=$(size "$whole")
    other=$((limit - margin - tree))
    first=$((other - $(folder_size "$out" bare)))
    [ "$first" -gt 0 ] || fail "--pieces: programs and wheel alone are too much for a call"
    while [ $((first + (count - 1) * other)) -lt "$total" ]; do count=$((count + 1)); done
    mkdir -p "$pieces_out"
    rm -f "$pieces_out"/model.part*
    for ((index = 1; index <= count; index++)); do
        next=$((total * (first + (index - 1) * other) / (first + (count - 1) * other)))
        dd if="$whole" of="$pieces_out/model.part$index" bs=1M iflag=skip_bytes,count_bytes skip="$done" \
            count=$((next - done)) status=none
        done=$next
    done
    cat "$pieces_out"/model.part* | cmp - "$whole"
}

if [ -n "$pieces" ]; then pack_pieces; fi

# --- the table

grouped() { printf '%s' "$1" | sed -E ':again; s/([0-9])([0-9]{3})($|,)/\1,\2\3/; t again'; }

row() { printf '%-68s %14s\n' "$1" "$(grouped "$2")"; }

# The last line of a call: whether it fits.
too_much=''
sum() {
    local over=$(($2 - limit + margin)) verdict
    row "  sum" "$2"
    if [ "$over" -le 0 ]; then
        verdict="fits: $(grouped $((-over))) bytes are left"
    else
        verdict="DOES NOT FIT: $(grouped "$over") bytes too much"
        too_much=yes
    fi
    printf '  %s: %s\n' "$1" "$verdict"
}

# The files of folder $1, a line each; without models of some layers, if $2 is said.
rows_of() {
    local path
    while IFS= read -r -d '' path; do
        row "  $(realpath --relative-to="$(dirname "$out")" "$path")" "$(size "$path")"
    done < <(find "$1" -type f ${2:+-not -name "*-layers*.gguf.xz"} -print0 | sort -z)
}

printf '\nAt most %s bytes travel in a call; %s are kept free.\n\n' "$(grouped "$limit")" "$(grouped "$margin")"
printf 'One call:\n'
row "  what git tracks or does not ignore" "$tree"
rows_of "$out"
sum "one call" $((tree + $(folder_size "$out")))
cut_fits=$too_much

if [ -n "$pieces" ]; then
    parts=("$pieces_out"/model.part*)
    for ((index = 1; index <= ${#parts[@]}; index++)); do
        part=$pieces_out/model.part$index
        printf '\nThe whole model, call %s of %s:\n' "$index" "${#parts[@]}"
        row "  what git tracks or does not ignore" "$tree"
        beside=0
        if [ "$index" -eq 1 ]; then
            rows_of "$out" bare
            beside=$(folder_size "$out" bare)
        fi
        row "  $(realpath --relative-to="$(dirname "$out")" "$part")" "$(size "$part")"
        sum "call $index" $((tree + beside + $(size "$part")))
    done
    printf '\nWhen all are there, and what the first call brought still is:\n'
    printf '  cat %s/model.part* | xz -dc >%s\n' "$(basename "$pieces_out")" "$(basename "$model")"
    printf '  sha256 %s\n' "$(sha256sum <"$model" | cut -d' ' -f1)"
fi

for folder in "$out" ${pieces:+"$pieces_out"}; do
    inside=$(realpath -m --relative-to="$root" "$folder")
    if [[ $inside != ..* ]] && ! git -C "$root" check-ignore -q "$inside/x"; then
        note "git does not ignore $inside/, so all that is in it counts with each call"
    fi
done
if [ -n "$cut_fits" ]; then
    if [ "${layers:-0}" -gt 1 ]; then
        note "fewer layers: --layers N with N < $layers, or none said, which takes as many as fit"
    elif [ -n "$model" ] && [ "$layers" != 0 ]; then
        note "no layers are too few: --layers 0 leaves the model out, --pieces spreads the whole one over several calls"
    else
        note "programs, wheel and checkout are too much for one call"
    fi
fi
[ -z "$too_much" ] || exit 1
