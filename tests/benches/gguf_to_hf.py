#!/usr/bin/env python3
"""Write a Hugging Face folder from a GGUF file: the weights dequantized, in bf16, with config and tokenizer.

    python gguf_to_hf.py model.gguf FOLDER

So the peer has the weights that Equipoise has, but for their rounding to bf16. Nothing is done where the folder was
made from the same file (name, length and time of change).
"""

import argparse
import json
from pathlib import Path

import torch
from gguf import GGUFReader
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

STAMP = "made_from.json"
VERSION = 2
"""Goes up when this script writes something else than it did."""

DIGIT_BY_DIGIT = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
"""Values of `tokenizer.ggml.pre` that split numbers into digits, which transformers does not read from GGUF files."""


def stamp_of(gguf: Path) -> dict[str, object]:
    """By what a GGUF file is known again."""
    status = gguf.stat()
    return {"name": gguf.name, "bytes": status.st_size, "changed": status.st_mtime_ns, "version": VERSION}


def pre_tokenizer_name(gguf: Path) -> str:
    """The file's `tokenizer.ggml.pre`; empty where it has none."""
    field = GGUFReader(gguf).get_field("tokenizer.ggml.pre")
    return field.contents() if field else ""


def read_tokenizer(gguf: Path) -> PreTrainedTokenizerFast:
    """The tokenizer as the file means it: transformers takes GPT-2's splitting for all."""
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if pre_tokenizer_name(gguf) in DIGIT_BY_DIGIT:
        digits = pre_tokenizers.Digits(individual_digits=True)
        bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_of])
    return tokenizer


def dequantized(gguf: Path) -> PreTrainedModel:
    """The model in float32, as transformers dequantizes it."""
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # What was read is no longer quantized, and must not be taken for it.
    for config in (model.config, model):
        if hasattr(config, "quantization_config"):
            del config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    return model


def convert(gguf: Path, folder: Path) -> None:
    """Writes the folder; its stamp comes last, so that an interrupted conversion is done again."""
    tokenizer = read_tokenizer(gguf)
    dequantized(gguf).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    stamp, stamp_file = stamp_of(args.gguf), args.folder / STAMP
    if stamp_file.exists() and json.loads(stamp_file.read_text()) == stamp:
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    stamp_file.unlink(missing_ok=True)
    convert(args.gguf, args.folder)
    stamp_file.write_text(json.dumps(stamp))


if __name__ == "__main__":
    main()
