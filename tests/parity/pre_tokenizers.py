#!/usr/bin/env python3
"""Write how texts are split before byte-pair encoding, by each name that `tokenizer.ggml.pre` may have.

    pip install regex
    python tests/parity/pre_tokenizers.py

The patterns are those of the models' `tokenizer.json`, the engine is Python's `regex`: another one than the library's. Matches
and what lies between them are pieces; several patterns split one after the other. `tests/golden/pre_tokenizers.json` has the
texts, and for each name the pieces of each text.

    python tests/parity/pre_tokenizers.py --vocabularies llama_cpp_python-0.3.36/vendor/llama.cpp/models

also holds the tokens that llama.cpp makes of its own sample texts (ggml-vocab-NAME.gguf.inp and .out) against the pieces: no
token may reach over the end of one. It writes nothing then.
"""

import argparse
import json
from pathlib import Path

import regex

CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LEAD = r"[^\r\n\p{L}\p{N}]?"


def llama3(digits):
    return CONTRACTION + "|" + LEAD + r"\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|" + TAIL


def cased(contraction, digits):
    words = f"{LEAD}{UPPER}*{LOWER}+{contraction}|{LEAD}{UPPER}+{LOWER}*{contraction}"
    return words + "|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + TAIL


PATTERNS = {
    "gpt-2": [GPT2],
    "smollm": [r"\p{N}", GPT2],
    "llama-bpe": [llama3(r"\p{N}{1,3}")],
    "glm4": [llama3(r"\p{N}{1,3}")],
    "qwen2": [llama3(r"\p{N}")],
    "qwen35": [CONTRACTION + "|" + LEAD + r"[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + TAIL],
    "seed-coder": [CONTRACTION + "|" + LEAD + r"\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|" + TAIL],
    "tekken": [cased("", r"\p{N}")],
    "gpt-4o": [cased(CONTRACTION + "?", r"\p{N}{1,3}")],
    "deepseek-v3": [
        r"\p{N}{1,3}",
        "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|""" + TAIL,
    ],
}

TEXTS = [
    "It's 1234567 o'clock, and WE'LL go; they'Re HERE'S done",
    "camelCase HTMLParser iPhone ABCdef",
    "a/b//c\n\n/d !?\n\n  (x)\r\n\tend   \n",
    "e\u0301te\u0301 \u0939\u093f\u0928\u094d\u0926\u0940 \u0e20\u0e32\u0e29\u0e32",
    "中文字 かなカナ 한국어 漢字123と456",
    "price: $3.50 (±2%) — “quoted” … x=y+z; #tag @user_name",
    "  leading, trailing  ",
    "TP53's p-value<1e-10; IL-6/IL-8\n• item",
    "½ ² ٣٤٥ Ⅷ",
    "😀😃 emoji 👩‍🔬 done",
]


def split(patterns, text):
    pieces = [text]
    for pattern in patterns:
        next_pieces = []
        for piece in pieces:
            end = 0
            for match in regex.finditer(pattern, piece):
                next_pieces += [piece[end : match.start()], match.group()]
                end = match.end()
            next_pieces.append(piece[end:])
        pieces = [piece for piece in next_pieces if piece]
    return pieces


def check(folder, name, pre):
    """Whether llama.cpp's tokens of its samples stay within our pieces."""
    import gguf

    path = folder / f"ggml-vocab-{name}.gguf"
    tokens = gguf.GGUFReader(path).fields["tokenizer.ggml.tokens"].contents()
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    bytes_of = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
    texts = (folder / f"{path.name}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = (folder / f"{path.name}.out").read_text().split("\n")
    bad = 0
    for text, line in zip(texts, lines):
        ends, place = set(), 0
        for token in line.split():
            place += len(bytes(bytes_of[c] for c in tokens[int(token)]))
            ends.add(place)
        place = 0
        for piece in split(PATTERNS[pre], text):
            place += len(piece.encode())
            bad += place not in ends
    print(f"{name}: {len(texts)} texts, {bad} ends of pieces within a token")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("tests/golden/pre_tokenizers.json"))
    parser.add_argument("--vocabularies", type=Path)
    args = parser.parse_args()
    if args.vocabularies:
        for name, pre in [("qwen2", "qwen2"), ("qwen35", "qwen35"), ("llama-bpe", "llama-bpe"), ("gpt-2", "gpt-2"), ("starcoder", "smollm")]:
            check(args.vocabularies, name, pre)
        return
    pieces = {name: [split(patterns, text) for text in TEXTS] for name, patterns in PATTERNS.items()}
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in pieces.items())
    head = json.dumps({"made_by": "tests/parity/pre_tokenizers.py", "texts": TEXTS}, indent=1)[:-2]
    args.out.write_text(f'{head},\n "pieces": {{\n{lines}\n }}\n}}\n')


if __name__ == "__main__":
    main()
