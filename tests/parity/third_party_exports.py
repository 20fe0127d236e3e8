#!/usr/bin/env python3
"""The exports of one adapter as the programs' own tools write them: what ours are held against.

    python third_party_exports.py --base BASE --adapter PEFT_FOLDER --llama-cpp LLAMA_CPP --out OUT

    OUT/merged              peft's merge_and_unload, saved by transformers in float32
    OUT/merged-TYPE.gguf    llama.cpp's convert_hf_to_gguf.py of that; TYPE from --types, f32 and f16 by default
    OUT/adapter.gguf        llama.cpp's convert_lora_to_gguf.py of the PEFT folder, float32
    OUT/base-f32.gguf       the base itself, through the same converter
    OUT/mlx                 mlx-lm's adapter folder: it has no converter, so this one is written here

BASE is a Hugging Face folder, LLAMA_CPP a checkout of llama.cpp (llama-cpp-python's sdist holds one
under vendor/llama.cpp). Needs torch, transformers, peft, safetensors, gguf.

llama.cpp's converter does not know rsLoRA: it takes `lora_alpha` as it stands. So for such an adapter
it is given a copy whose `lora_alpha` is alpha times the root of r, and so is the scale for mlx-lm.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def scale_of(config):
    return config["lora_alpha"] / (math.sqrt(config["r"]) if config["use_rslora"] else config["r"])


def merge(base, adapter, out):
    import peft
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    model.save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        if (base / name).exists():
            shutil.copy(base / name, out / name)


def fold(adapter, config, out):
    """A copy of the adapter under plain scaling, with the same mathematics."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    folded = {**config, "use_rslora": False, "lora_alpha": scale_of(config) * config["r"]}
    (out / "adapter_config.json").write_text(json.dumps(folded, indent=2), encoding="utf-8")
    shutil.copy(adapter / "adapter_model.safetensors", out)
    return out


def convert(llama_cpp, script, *arguments):
    """One of llama.cpp's converters, with llama.cpp's own gguf package."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(llama_cpp / "gguf-py"), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(llama_cpp / script), *map(str, arguments)]
    print(" ".join(command))
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


def write_mlx(adapter, config, layers, out):
    """mlx-lm holds A as [in, r] and B as [r, out], and multiplies by `scale` as it stands."""
    out.mkdir(parents=True, exist_ok=True)
    tensors, keys = {}, set()
    for name, value in load_file(adapter / "adapter_model.safetensors").items():
        module, part = name.removeprefix("base_model.model.").removesuffix(".weight").rsplit(".", 1)
        tensors[f"{module}.{part.lower()}"] = value.T.contiguous()
        keys.add(module.split(".", 3)[3])
    save_file(tensors, out / "adapters.safetensors", metadata={"format": "mlx"})
    parameters = {"rank": config["r"], "scale": scale_of(config), "dropout": 0.0, "keys": sorted(keys)}
    head = {"fine_tune_type": "lora", "num_layers": layers, "lora_parameters": parameters}
    (out / "adapter_config.json").write_text(json.dumps(head, indent=2) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--llama-cpp", type=Path, required=True)
    parser.add_argument("--types", nargs="*", default=["f32", "f16"], help="of the merged GGUF files")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    config = json.loads((args.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    layers = json.loads((args.base / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
    merge(args.base, args.adapter, args.out / "merged")
    for kind in args.types:
        file = args.out / f"merged-{kind}.gguf"
        convert(args.llama_cpp, "convert_hf_to_gguf.py", args.out / "merged", "--outtype", kind, "--outfile", file)
    convert(args.llama_cpp, "convert_hf_to_gguf.py", args.base, "--outtype", "f32", "--outfile", args.out / "base-f32.gguf")
    source = fold(args.adapter, config, args.out / "folded") if config["use_rslora"] else args.adapter
    convert(args.llama_cpp, "convert_lora_to_gguf.py", source, "--base", args.base, "--outfile", args.out / "adapter.gguf")
    write_mlx(args.adapter, config, layers, args.out / "mlx")


if __name__ == "__main__":
    main()
