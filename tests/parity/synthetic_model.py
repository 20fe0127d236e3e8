#!/usr/bin/env python3
"""A model of Llama 3.1 8B's shape with random weights, and a random PEFT adapter for it.

For trials of size and speed, where a real 8B model is not at hand: merging, converting, exporting.
The numbers mean nothing, but they are finite and of a trained model's order of magnitude, and the
adapter's B is not zero, so that its effect can be measured.

    python synthetic_model.py --tokenizer FOLDER --out OUT               # 16 GB
    python synthetic_model.py --tokenizer FOLDER --out OUT --layers 2    # 3 GB

    OUT/base       config.json, shards of bfloat16 below --shard-gb each, their index, the tokenizer's files
    OUT/adapter    adapter_config.json and adapter_model.safetensors, float32, all seven projections

FOLDER is any Hugging Face folder with a tokenizer; its vocabulary must not be larger than the
model's (--vocab). Weights are drawn and written a few million at a time: memory stays at about
120 MB whatever the size. The same --seed gives the same files. Needs numpy only.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np

HIDDEN, WIDE, HEADS, KV_HEADS, HEAD_DIM = 4096, 14336, 32, 8, 128
CHUNK = 1 << 22
TOKENIZER_FILES = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
]
PROJECTIONS = {
    "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
    "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
    "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
    "mlp.gate_proj": (WIDE, HIDDEN),
    "mlp.up_proj": (WIDE, HIDDEN),
    "mlp.down_proj": (HIDDEN, WIDE),
}


def base_tensors(layers, vocab):
    """Name, shape and kind of each tensor, in the order of the files."""
    yield "model.embed_tokens.weight", (vocab, HIDDEN), "weight"
    for layer in range(layers):
        yield f"model.layers.{layer}.input_layernorm.weight", (HIDDEN,), "norm"
        for name, shape in PROJECTIONS.items():
            yield f"model.layers.{layer}.{name}.weight", shape, "weight"
        yield f"model.layers.{layer}.post_attention_layernorm.weight", (HIDDEN,), "norm"
    yield "model.norm.weight", (HIDDEN,), "norm"
    yield "lm_head.weight", (vocab, HIDDEN), "weight"


def adapter_tensors(layers, rank):
    for layer in range(layers):
        for name, (out, width) in PROJECTIONS.items():
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            yield f"{prefix}.lora_A.weight", (rank, width), "weight"
            yield f"{prefix}.lora_B.weight", (out, rank), "lora_b"


def to_bf16(values):
    """The upper halves of float32, rounded to nearest, ties to even; as uint16."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def chunks(rng, shape, kind, dtype):
    """The bytes of one tensor, piece by piece."""
    count, fan_in = int(np.prod(shape)), shape[-1]
    for start in range(0, count, CHUNK):
        values = rng.standard_normal(min(CHUNK, count - start), dtype=np.float32)
        if kind == "norm":
            values = 1 + np.float32(0.05) * values
        else:
            # Outputs about as large as inputs; B small, as after some training.
            values *= np.float32(0.01 if kind == "lora_b" else fan_in**-0.5)
        yield (to_bf16(values) if dtype == "BF16" else values).tobytes()


def write_safetensors(path, tensors, dtype, rng):
    size = {"BF16": 2, "F32": 4}[dtype]
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape, _ in tensors:
        end = offset + int(np.prod(shape)) * size
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, shape, kind in tensors:
            for piece in chunks(rng, shape, kind, dtype):
                file.write(piece)
    print(f"{path}: {len(tensors)} tensors, {path.stat().st_size / 1e9:.2f} GB", flush=True)


def shards(tensors, limit):
    """Consecutive tensors, so many that a shard stays below `limit` bytes."""
    files, held = [[]], 0
    for tensor in tensors:
        size = int(np.prod(tensor[1])) * 2
        if size > limit:
            sys.exit(f"{tensor[0]} alone takes {size / 1e9:.2f} GB; take a larger --shard-gb")
        if held + size > limit:
            files.append([])
            held = 0
        files[-1].append(tensor)
        held += size
    return files


def write_base(args, out, rng):
    # Room for the header, so that the file itself is below the limit.
    files = shards(base_tensors(args.layers, args.vocab), int(args.shard_gb * 1e9) - (1 << 20))
    where = {}
    for n, tensors in enumerate(files, 1):
        name = f"model-{n:05}-of-{len(files):05}.safetensors"
        write_safetensors(out / name, tensors, "BF16", rng)
        where |= {tensor: name for tensor, _, _ in tensors}
    total = sum(int(np.prod(shape)) * 2 for tensors in files for _, shape, _ in tensors)
    write_json(out / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})
    rope = {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    }
    special = json.loads((args.tokenizer / "config.json").read_text(encoding="utf-8"))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": special.get("bos_token_id"),
        "eos_token_id": special.get("eos_token_id"),
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": WIDE,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": HEADS,
        "num_hidden_layers": args.layers,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-5,
        "rope_scaling": rope,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": args.vocab,
    }
    write_json(out / "config.json", config)
    for name in TOKENIZER_FILES:
        if (args.tokenizer / name).exists():
            shutil.copyfile(args.tokenizer / name, out / name)


def write_adapter(args, out, base, rng):
    tensors = list(adapter_tensors(args.layers, args.rank))
    write_safetensors(out / "adapter_model.safetensors", tensors, "F32", rng)
    config = {
        "base_model_name_or_path": str(base),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": 2 * args.rank,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": args.rank,
        "target_modules": sorted(name.split(".")[1] for name in PROJECTIONS),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    write_json(out / "adapter_config.json", config)


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def vocabulary(folder):
    """One more than the largest id of the tokenizer."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    listed = tokenizer["model"]["vocab"]
    ids = listed.values() if isinstance(listed, dict) else range(len(listed))
    return max([*ids, *(token["id"] for token in tokenizer.get("added_tokens", []))]) + 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True, help="Hugging Face folder to take the tokenizer from")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--vocab", type=int, default=128256)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--shard-gb", type=float, default=5.0, help="no shard reaches this many GB")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    if args.layers < 1 or args.rank < 1:
        parser.error("--layers and --rank must be at least 1")
    if vocabulary(args.tokenizer) > args.vocab:
        parser.error(f"the tokenizer has {vocabulary(args.tokenizer)} tokens, the model {args.vocab}")
    needed = sum(2 * int(np.prod(shape)) for _, shape, _ in base_tensors(args.layers, args.vocab))
    needed += sum(4 * int(np.prod(shape)) for _, shape, _ in adapter_tensors(args.layers, args.rank))
    args.out.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(args.out).free < needed + (1 << 30):
        sys.exit(f"{needed / 1e9:.1f} GB are needed in {args.out}, and 1 GB to spare")
    base, adapter = args.out / "base", args.out / "adapter"
    for folder in (base, adapter):
        folder.mkdir(exist_ok=True)
        if any(folder.iterdir()):
            sys.exit(f"{folder} is not empty")
    seeds = np.random.SeedSequence(args.seed).spawn(2)
    write_base(args, base, np.random.default_rng(seeds[0]))
    write_adapter(args, adapter, base, np.random.default_rng(seeds[1]))


if __name__ == "__main__":
    main()
