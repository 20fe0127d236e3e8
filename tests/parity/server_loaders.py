#!/usr/bin/env python3
"""Load a PEFT folder with the adapter loaders of vLLM and SGLang, as they stand in their wheels.

Both servers want a GPU and gigabytes of packages. The modules that read and judge an adapter want
neither. This script imports those modules from an unpacked wheel, puts empty stand-ins in place of
everything else the servers would import, and reads a folder with them.

    pip download --no-deps vllm==0.33.0 sglang==0.5.23
    unzip -q vllm-*.whl 'vllm/*.py' -d SOURCES; unzip -q sglang-*.whl '*.py' -d SOURCES
    python server_loaders.py --sources SOURCES --server vllm --adapter PEFT_FOLDER --base BASE
    python server_loaders.py --sources SOURCES --server sglang --adapter PEFT_FOLDER --base BASE

Run for real, vLLM: `LoRAConfig` (`max_lora_rank` from --max-rank), `PEFTHelper.from_local_dir` and
`validate_legal`, then `LoRAModel.from_local_checkpoint` with the names a Llama model has: names, shapes, scaling.
Run for real, SGLang: `LoRAConfig`, `LoRAManager.validate_new_adapter`, `LoRAAdapter` with its scaling,
each tensor through `_process_weight`, and `_normalize_weights`, which stacks q, k, v and gate, up. The shapes of the
server's buffers are written here after its `mem_pool.py` (a Llama, one GPU).
Not run: the models, the kernels, the memory pools, sharding. So this shows that an adapter is read
and how it is scaled, not what the server then computes.

Needs torch, transformers, safetensors, regex, pydantic. Exit status 1 where the server refuses, or accepts
and would do otherwise than PEFT.
"""

import argparse
import importlib.abc
import importlib.machinery
import json
import math
import re
import sys
import types
from pathlib import Path
from unittest.mock import MagicMock

import torch
from safetensors.torch import load_file

# What is imported as it is; every other module of the two packages is a stand-in.
REAL = {
    "vllm.config.lora",
    "vllm.config.utils",
    "vllm.lora.lora_model",
    "vllm.lora.lora_weights",
    "vllm.lora.peft_helper",
    "vllm.lora.utils",
    "sglang.srt.layers.utils",
    "sglang.srt.layers.utils.common",
    "sglang.srt.lora.lora",
    "sglang.srt.lora.lora_config",
    "sglang.srt.lora.lora_manager",
    "sglang.srt.lora.utils",
}
LLAMA_MODULES = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens", "lm_head"}


class Standin(types.ModuleType):
    """A module in which every name exists and does nothing. A class where a class can be wanted."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        value = type(name, (), {}) if name[:1].isupper() else MagicMock(name=f"{self.__name__}.{name}")
        setattr(self, name, value)
        return value


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Real modules from the sources, stand-ins for the rest of the package."""

    def __init__(self, sources, package):
        self.sources, self.package = sources, package

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] != self.package:
            return None
        if name in REAL:
            parts = self.sources.joinpath(*name.split("."))
            file = parts / "__init__.py" if parts.is_dir() else parts.with_suffix(".py")
            if not file.is_file():
                sys.exit(f"{file} is not there: another version of {self.package}?")
            return importlib.util.spec_from_file_location(
                name, file, submodule_search_locations=[str(parts)] if parts.is_dir() else None
            )
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return Standin(spec.name)

    def exec_module(self, module):
        pass


def expected_scale(config, module):
    """What PEFT multiplies B·A of this module with: patterns match a name's end, the first match counts."""

    def own(pattern, otherwise):
        hits = (value for key, value in (pattern or {}).items() if re.match(rf"(.*\.)?({key})$", module))
        return next(hits, otherwise)

    rank, alpha = own(config.get("rank_pattern"), config["r"]), own(config.get("alpha_pattern"), config["lora_alpha"])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def base_shapes(base):
    """`[out, in]` of each projection of a Llama, by the name it has in the base's checkpoint."""
    hidden, wide = base["hidden_size"], base["intermediate_size"]
    head = base.get("head_dim") or hidden // base["num_attention_heads"]
    q, kv = head * base["num_attention_heads"], head * base["num_key_value_heads"]
    attention = {"q_proj": (q, hidden), "k_proj": (kv, hidden), "v_proj": (kv, hidden), "o_proj": (hidden, q)}
    mlp = {"gate_proj": (wide, hidden), "up_proj": (wide, hidden), "down_proj": (hidden, wide)}
    return {
        f"model.layers.{layer}.{block}.{name}": shape
        for layer in range(base["num_hidden_layers"])
        for block, shapes in (("self_attn", attention), ("mlp", mlp))
        for name, shape in shapes.items()
    }


def vllm(args, config, base):
    from vllm.config.lora import LoRAConfig
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.peft_helper import PEFTHelper

    # Pinned memory wants a GPU.
    for name in ("lora_model", "lora_weights"):
        sys.modules[f"vllm.lora.{name}"].PIN_MEMORY = False
    try:
        settings = LoRAConfig(max_lora_rank=args.max_rank)
        helper = PEFTHelper.from_local_dir(str(args.adapter), max_position_embeddings=None)
        helper.validate_legal(settings)
        model = LoRAModel.from_local_checkpoint(
            str(args.adapter), LLAMA_MODULES, helper, lora_model_id=1, device="cpu", dtype=torch.float32
        )
    except (ValueError, KeyError) as error:
        refused("vllm", error)

    shapes, wrong = base_shapes(base), []
    for name, layer in model.loras.items():
        if name not in shapes:
            wrong.append(f"{name} is not in the base: vLLM would ignore it")
            continue
        if (layer.lora_b.shape[0], layer.lora_a.shape[1]) != shapes[name]:
            wrong.append(f"{name}: {list(layer.lora_b.shape)} by {list(layer.lora_a.shape)} for {shapes[name]}")
        # `optimize` folds the scaling into B. What is left is what the server multiplies.
        before = layer.lora_b.norm()
        scale, wanted = float(layer.optimize().lora_b.norm() / before), expected_scale(config, name)
        if abs(scale - wanted) > 1e-4 * wanted:
            wrong.append(f"{name}: scaled by {scale:.6f}, by PEFT {wanted:.6f}")
    print(f"vllm: {len(model.loras)} modules of rank {model.rank}, scaled by {helper.vllm_lora_scaling_factor:.6f}")
    return wrong


def sglang(args, config, base):
    from sglang.srt.lora.lora import LoRAAdapter
    from sglang.srt.lora.lora_config import LoRAConfig
    from sglang.srt.lora.lora_manager import LoRAManager
    from sglang.srt.lora.utils import get_normalized_target_modules, get_target_module_name

    tensors = load_file(args.adapter / "adapter_model.safetensors")
    try:
        own = LoRAConfig(str(args.adapter), base_vocab_size=base["vocab_size"])
        manager = types.SimpleNamespace(attn_dp_enabled=False, lora_refs={}, num_pinned_loras=0, max_loras_per_batch=8)
        request = types.SimpleNamespace(lora_name="adapter", lora_path=str(args.adapter), pinned=False)
        LoRAManager.validate_new_adapter(manager, own, request)
        targets = get_normalized_target_modules(own.target_modules)
        adapter = LoRAAdapter("adapter", own, types.SimpleNamespace(**base), None, None)
        for name, tensor in tensors.items():
            adapter._process_weight(name, tensor)
        adapter._normalize_weights()
    except (ValueError, KeyError, AssertionError, AttributeError) as error:
        refused("sglang", error)

    shapes = base_shapes(base)
    # What the server's buffers hold a layer: A as [slices · r, in], B as [out of all slices, r].
    stacks = {"q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj"}
    stacks |= {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj"}
    buffers = {}
    for name, (out, width) in shapes.items():
        if ".layers.0." in name:
            leaf = name.rsplit(".", 1)[1]
            rows, total, _ = buffers.get(stacks.get(leaf, leaf), (0, 0, 0))
            buffers[stacks.get(leaf, leaf)] = (rows + own.r, total + out, width)
    allowed = set(buffers) if "all" in targets else targets
    wrong, held = [], 0
    for name, value in (entry for layer in adapter.layers for entry in layer.weights.items()):
        held += 1
        try:
            rows, out, width = buffers[get_target_module_name(name, allowed)]
        except (ValueError, KeyError):
            wrong.append(f"{name}: SGLang has no buffer for it with the target modules {sorted(allowed)}")
            continue
        wanted = [rows, width] if "lora_A" in name else [out, own.r]
        if list(value.shape) != wanted:
            wrong.append(f"{name} is {list(value.shape)}, the server's buffer {wanted}")
    ignored = [name for name in tensors if ".layers." not in name]
    wrong += [f"{name} is ignored: no number of a layer in its name" for name in ignored]
    for name in shapes:
        wanted = expected_scale(config, name)
        if any(name in key for key in tensors) and abs(adapter.scaling - wanted) > 1e-4 * wanted:
            wrong.append(f"{name}: scaled by {adapter.scaling:.6f}, by PEFT {wanted:.6f}")
    print(f"sglang: {len(tensors)} tensors, {held} once stacked, scaled by {adapter.scaling:.6f}, modules {sorted(targets)}")
    return wrong


def refused(server, error):
    sys.exit(f"{server} refuses: {type(error).__name__}: {error}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", choices=["vllm", "sglang"], required=True)
    parser.add_argument("--sources", type=Path, required=True, help="where the wheels were unpacked")
    parser.add_argument("--adapter", type=Path, required=True, help="PEFT folder")
    parser.add_argument("--base", type=Path, required=True, help="Hugging Face folder of the base, for its config.json")
    parser.add_argument("--max-rank", type=int, default=16, help="vLLM's max_lora_rank")
    args = parser.parse_args()
    config = json.loads((args.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    base = json.loads((args.base / "config.json").read_text(encoding="utf-8"))
    sys.meta_path.insert(0, Finder(args.sources, args.server))
    wrong = {"vllm": vllm, "sglang": sglang}[args.server](args, config, base)
    if wrong:
        sys.exit(f"{args.server} accepts it, but {len(wrong)} things are wrong, the first: {wrong[0]}")
    print(f"{args.server}: accepted, every tensor where it belongs, scaled as PEFT does")


if __name__ == "__main__":
    main()
