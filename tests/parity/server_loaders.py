#!/usr/bin/env python3
"""Load a PEFT folder with the adapter loaders of vLLM and SGLang, as they stand in their wheels.

Both servers want a GPU and gigabytes of packages. The modules that read and judge an adapter want
neither. This script imports those modules from an unpacked wheel, puts empty stand-ins in place of
everything else the servers would import, and reads a folder with them.

    pip download --no-deps vllm==0.33.0 sglang==0.5.23
    unzip -q vllm-*.whl 'vllm/*.py' -d SOURCES; unzip -q sglang-*.whl '*.py' -d SOURCES
    python server_loaders.py --sources SOURCES --server vllm --adapter PEFT_FOLDER
    python server_loaders.py --sources SOURCES --server sglang --adapter PEFT_FOLDER --base BASE

Run for real, vLLM: `LoRAConfig` (`max_lora_rank` from --max-rank), `PEFTHelper.from_local_dir` and
`validate_legal`, then `LoRAModel.from_local_checkpoint` with the names a Llama model has: names, shapes, scaling.
Run for real, SGLang: `LoRAConfig`, `LoRAManager.validate_new_adapter`, `LoRAAdapter` with its scaling,
each tensor through `_process_weight`, and `_normalize_weights`, which stacks q, k, v and gate, up.
Not run: the models, the kernels, the memory pools, sharding. So this shows that an adapter is read
and how it is scaled, not what the server then computes.

Needs torch, transformers, safetensors, regex, pydantic. Exit status 1 where the server refuses.
"""

import argparse
import importlib.abc
import importlib.machinery
import json
import math
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


def expected_scale(folder):
    """What PEFT multiplies B·A with."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    rank, alpha = config["r"], config["lora_alpha"]
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def vllm(args):
    from vllm.config.lora import LoRAConfig
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.peft_helper import PEFTHelper

    # Pinned memory wants a GPU.
    for name in ("lora_model", "lora_weights"):
        sys.modules[f"vllm.lora.{name}"].PIN_MEMORY = False
    settings = LoRAConfig(max_lora_rank=args.max_rank)
    helper = PEFTHelper.from_local_dir(str(args.adapter), max_position_embeddings=None)
    helper.validate_legal(settings)
    model = LoRAModel.from_local_checkpoint(
        str(args.adapter), LLAMA_MODULES, helper, lora_model_id=1, device="cpu", dtype=torch.float32
    )
    tensors, scales, stray = load_file(args.adapter / "adapter_model.safetensors"), set(), []
    for name, layer in model.loras.items():
        a, b = (tensors[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
        if not (layer.lora_a.equal(a.float()) and layer.lora_b.equal(b.float())):
            stray.append(name)
        # `optimize` folds the scaling into B: what is multiplied at run time.
        optimized = layer.optimize()
        scales.add(round(float(optimized.lora_b.norm() / b.float().norm()), 6))
    print(f"vllm: {len(model.loras)} modules, rank {model.rank}, scaling {sorted(scales)}, tensors not as written: {len(stray)}")
    print(f"vllm: names such as {next(iter(model.loras))}")
    return scales


def sglang(args):
    from sglang.srt.lora.lora import LoRAAdapter
    from sglang.srt.lora.lora_config import LoRAConfig
    from sglang.srt.lora.lora_manager import LoRAManager
    from sglang.srt.lora.utils import get_normalized_target_modules

    base = json.loads((args.base / "config.json").read_text(encoding="utf-8"))
    config = LoRAConfig(str(args.adapter), base_vocab_size=base["vocab_size"])
    manager = types.SimpleNamespace(attn_dp_enabled=False, lora_refs={}, num_pinned_loras=0, max_loras_per_batch=8)
    request = types.SimpleNamespace(lora_name="adapter", lora_path=str(args.adapter), pinned=False)
    LoRAManager.validate_new_adapter(manager, config, request)
    adapter = LoRAAdapter("adapter", config, types.SimpleNamespace(**base), None, None)
    tensors = load_file(args.adapter / "adapter_model.safetensors")
    for name, tensor in tensors.items():
        adapter._process_weight(name, tensor)
    adapter._normalize_weights()
    stacked = adapter.layers[0].weights
    held = sum(len(layer.weights) for layer in adapter.layers)
    print(f"sglang: {held} tensors once stacked, of {len(tensors)}; scaling {adapter.scaling}")
    for name, value in stacked.items():
        print(f"sglang:   {name} {list(value.shape)}")
    print(f"sglang: target modules {sorted(get_normalized_target_modules(config.target_modules))}")
    return {adapter.scaling}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", choices=["vllm", "sglang"], required=True)
    parser.add_argument("--sources", type=Path, required=True, help="where the wheels were unpacked")
    parser.add_argument("--adapter", type=Path, required=True, help="PEFT folder")
    parser.add_argument("--base", type=Path, help="Hugging Face folder of the base, for its config.json")
    parser.add_argument("--max-rank", type=int, default=16, help="vLLM's max_lora_rank")
    args = parser.parse_args()
    if args.server == "sglang" and args.base is None:
        parser.error("--server sglang needs --base")

    sys.meta_path.insert(0, Finder(args.sources, args.server))
    try:
        scales = {"vllm": vllm, "sglang": sglang}[args.server](args)
    except (ValueError, AssertionError, KeyError) as error:
        sys.exit(f"{args.server} refuses: {type(error).__name__}: {error}")
    wanted = expected_scale(args.adapter)
    if any(abs(scale - wanted) > 1e-4 * wanted for scale in scales):
        sys.exit(f"{args.server} scales by {sorted(scales)}, PEFT by {wanted:.6f}")
    print(f"{args.server}: accepted, and scaled as PEFT does ({wanted:.6f})")


if __name__ == "__main__":
    main()
