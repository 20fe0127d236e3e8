#!/usr/bin/env python3
"""The peer on the GPU: transformers + PEFT on a base in bitsandbytes' NF4, of an 8B-shaped Llama with random weights.

    python peer_peft_bnb.py --shapes 2x2048,1x4096,1x8192      on the GPU
    python peer_peft_bnb.py --toy                              on the CPU, small: shows that it works

Nothing is downloaded, and the whole model never lies in bf16: its matrices are made and quantized one by one.
Prints JSON on stdout, one object a line, as it goes.
"""

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

LLAMA_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "tie_word_embeddings": False,
}
TOY = LLAMA_8B | {
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 256,
}
TOY_SHAPES, TOY_GEMM = "2x32,1x64", 256
STD = 0.02
GEMM_SIZE, GEMM_GROUPS, GEMM_PRODUCTS = 8192, 10, 10
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")
MODES = {"adapter-f32": torch.float32, "adapter-bf16": torch.bfloat16}
"""The adapter's type: f32 under autocast to bf16, as the Trainer has it; or all in bf16."""


def say(event: str, **fields: object) -> None:
    """Prints one line, at once: the driver reads the time at which it comes."""
    print(json.dumps({"event": event, **fields}), flush=True)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release(device: torch.device) -> None:
    """Gives back what the last shape left, so that the next one's peak is its own."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peaks(device: torch.device) -> dict[str, int]:
    """The most bytes in tensors, and the most that torch took from the driver for them; empty on the CPU."""
    if device.type != "cuda":
        return {}
    return {
        "peak_bytes": torch.cuda.max_memory_allocated(device),
        "reserved_bytes": torch.cuda.max_memory_reserved(device),
    }


def gemm(device: torch.device, size: int) -> float:
    """FLOP a second of square bf16 products of random numbers: the best group of several."""
    left, right = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
    out = torch.empty_like(left)
    seconds = []
    for _ in range(GEMM_GROUPS + 1):
        synchronize(device)
        start = time.perf_counter()
        for _ in range(GEMM_PRODUCTS):
            torch.matmul(left, right, out=out)
        synchronize(device)
        seconds.append((time.perf_counter() - start) / GEMM_PRODUCTS)
    rates = [2 * size**3 / each for each in seconds[1:]]
    say("gemm", size=size, flops=max(rates), median=statistics.median(rates), min=min(rates))
    return max(rates)


def build(shape: dict[str, Any], rank: int, device: torch.device) -> Any:
    """The quantized model with its adapter in f32, ready to train."""
    import peft
    from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM
    from transformers.integrations import replace_with_bnb_linear

    config = LlamaConfig(**shape, use_cache=False, attn_implementation="sdpa")
    how = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=False,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model = replace_with_bnb_linear(model, modules_to_not_convert=["lm_head"], quantization_config=how)
    model.is_loaded_in_4bit = True
    fill(model, device)
    # Made of the configuration, not of weights; on `meta` they have no numbers.
    with device:
        model.model.rotary_emb = type(model.model.rotary_emb)(config)
    left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    assert not left, f"without numbers: {left}"
    lora = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model = peft.get_peft_model(model, lora)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def fill(model: Any, device: torch.device) -> None:
    """Gives each parameter random numbers (norms: ones), and quantizes those of 4-bit layers as they come."""
    import bitsandbytes as bnb

    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            numbers = torch.empty(parameter.shape, dtype=torch.bfloat16, device=device)
            numbers = numbers.normal_(std=STD) if parameter.dim() > 1 else numbers.fill_(1.0)
            if isinstance(module, bnb.nn.Linear4bit):
                filled = bnb.nn.Params4bit(
                    numbers, requires_grad=False, quant_type="nf4", compress_statistics=False, module=module
                ).to(device)
            else:
                filled = torch.nn.Parameter(numbers, requires_grad=False)
            setattr(module, name, filled)


def counts(model: Any, shape: dict[str, Any], rank: int) -> dict[str, int]:
    """What the FLOP of a step are made of."""
    linear = [module for module in model.modules() if hasattr(module, "lora_A")]
    width = shape["num_attention_heads"] * (shape["hidden_size"] // shape["num_attention_heads"])
    return {
        "layers": len(linear),
        "body_parameters": sum(m.in_features * m.out_features for m in linear),
        "head_parameters": shape["hidden_size"] * shape["vocab_size"],
        "lora_parameters": sum(rank * (m.in_features + m.out_features) for m in linear),
        "attention_width": shape["num_hidden_layers"] * width,
    }


def flops_per_token(counted: dict[str, int], length: int) -> float:
    """What a token of a whole row needs at least, all tokens learnt. tests/benches/README.md has the formula."""
    matrices = 4 * (counted["body_parameters"] + counted["head_parameters"]) + 6 * counted["lora_parameters"]
    return matrices + 6 * length * counted["attention_width"]


def steps(model: Any, rows: int, length: int, mode: str, device: torch.device) -> Iterator[tuple[float, float]]:
    """Trains on rows of random tokens without end; each step's loss and wall-clock seconds."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.to(MODES[mode])
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0, fused=device.type == "cuda")
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=mode == "adapter-f32")
    while True:
        synchronize(device)
        start = time.perf_counter()
        ids = torch.randint(model.config.vocab_size, (rows, length), device=device)
        with autocast:
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value = loss.item()
        synchronize(device)
        yield value, time.perf_counter() - start


def measure(model: Any, rows: int, length: int, mode: str, args: argparse.Namespace) -> list[tuple[float, float]]:
    """Losses and seconds of the steps that count: those after the warm-up."""
    running = steps(model, rows, length, mode, args.device)
    return [next(running) for _ in range(args.warmup + args.steps)][args.warmup :]


def bench(model: Any, shape: tuple[int, int], mode: str, args: argparse.Namespace, about: dict[str, Any]) -> None:
    """Measures one shape in one mode and prints it; a shape that has no room is printed as failed."""
    rows, length = shape
    release(args.device)
    key = {"shape": args.name, "rows": rows, "length": length, "mode": mode, "r": args.rank, "quantization": "nf4"}
    say("begin", **key)
    try:
        done = measure(model, rows, length, mode, args)
    except torch.cuda.OutOfMemoryError as error:
        say("failed", **key, why=f"out of memory: {str(error).splitlines()[0]}")
        return
    finally:
        model.zero_grad(set_to_none=True)
    rates = [rows * length / seconds for _, seconds in done]
    flops = flops_per_token(about["counts"], length)
    middle = statistics.median(rates)
    say(
        "bench",
        **key,
        steps=len(done),
        loss=done[0][0],
        tokens_per_second={"median": middle, "min": min(rates), "max": max(rates)},
        step_seconds=statistics.median(seconds for _, seconds in done),
        model_flops_per_token=flops,
        gemm_peak_flops=about["gemm"],
        share_of_gemm_peak=middle * flops / about["gemm"],
        **peaks(args.device),
    )


def guarded(work: Callable[[], Any], what: str) -> Any:
    """The result; a want of memory ends the program with a sentence."""
    try:
        return work()
    except torch.cuda.OutOfMemoryError as error:
        say("failed", why=f"{what}: out of memory: {str(error).splitlines()[0]}")
        raise SystemExit(3) from None


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="a small model, on the CPU unless --device is given")
    parser.add_argument("--device", type=torch.device, help="cuda:0 unless --toy")
    parser.add_argument("--shapes", default=None, help="ROWSxLENGTH, with commas between")
    parser.add_argument("--modes", default=",".join(MODES), help=f"of {', '.join(MODES)}")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--warmup", type=int, default=2, help="steps that do not count")
    parser.add_argument("--steps", type=int, default=6, help="steps that count")
    parser.add_argument("--rounds", type=int, default=1, help="how often all shapes and modes are gone through")
    args = parser.parse_args()
    args.device = args.device or torch.device("cpu" if args.toy else "cuda:0")
    args.name = "toy" if args.toy else "llama-8b"
    args.shapes = args.shapes or (TOY_SHAPES if args.toy else "2x2048,1x4096,1x8192")
    args.modes = args.modes.split(",")
    if unknown := set(args.modes) - set(MODES):
        parser.error(f"no such mode: {', '.join(sorted(unknown))}")
    return args


def main() -> None:
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    args = parse()
    if args.device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU; --toy runs on the CPU")
    torch.manual_seed(0)
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    gpu = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else None
    versions |= {"python": platform.python_version(), "cuda": torch.version.cuda}
    say("start", device=str(args.device), gpu=gpu, **versions)
    peak = gemm(args.device, TOY_GEMM if args.toy else GEMM_SIZE)
    shape = TOY if args.toy else LLAMA_8B
    start = time.perf_counter()
    model = guarded(lambda: build(shape, args.rank, args.device), "the model")
    about = {"gemm": peak, "counts": counts(model, shape, args.rank)}
    say("model", seconds=time.perf_counter() - start, **about["counts"], **peaks(args.device))
    for _ in range(args.rounds):
        for name in args.shapes.split(","):
            rows, length = map(int, name.split("x"))
            for mode in args.modes:
                bench(model, (rows, length), mode, args, about)
    say("end")


if __name__ == "__main__":
    main()
