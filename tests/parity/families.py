#!/usr/bin/env python3
"""Write golden files for the model families: tiny random models, their logits, an adapter, and its gradients.

    python tests/parity/families.py --out tests/golden/families --llama-cpp llama_cpp_python-0.3.36/vendor/llama.cpp
    python tests/parity/families.py --out tests/golden/families --only gemma2        # one of them, without GGUF

For each family in `family_specs.py`, OUT/NAME holds

    config.json, model.safetensors   the model, bfloat16, as transformers saves it or as older files look
    model.gguf                       what llama.cpp's converter makes of it (with --llama-cpp), bfloat16
    adapter                          a random PEFT adapter of rank 2 on every linear layer of the decoder
    expected.json                    for three samples the logits of the last position, without and with the adapter, a greedy
                                     continuation, and the losses of one step of SFT and of BFT over the three
    gradients_sft.safetensors,       the gradients of those losses for every A and B, by PEFT's names
    gradients_bft.safetensors

and for phi3_longrope the last three once more, as `…_long`, with samples on the other side of the original length.

All numbers are float64: transformers computes norms, softmax and rotary angles in float32 whatever the model's type, so this
script makes `torch.float32` mean float64 while a model is loaded and run. What float32 gives differs by no more than
`float32_difference`. The goldens are of the folder as it lies on disk, loaded by `from_pretrained`; nothing of the model that
was saved is left over. Where a GGUF file says less than `config.json`, `gguf_last_logits` are of what it says. `switches`
tells by how much the logits differ with a mechanism switched off: each must matter.
"""

import argparse
import contextlib
import json
import shutil
import sys
from pathlib import Path

import family_gguf
import peft
import torch
import transformers
from family_specs import FAMILIES, VOCABULARY
from safetensors.torch import save_file

OBJECTIVE = {
    "group_size": 8, "gamma": 1.0, "token_weighting": "probability", "sample_weighting": "min_group_confidence",
}
EPSILON = 1e-8
FLOAT32 = torch.float32
NEW_TOKENS = 16
LEAST_GAP = 5e-3
LEAST_DIFFERENCE = 1e-2


@contextlib.contextmanager
def float64_throughout():
    """`torch.float32`, `torch.float` and `.float()` mean float64."""
    kept = torch.float32, torch.float, torch.Tensor.float
    torch.float32, torch.float, torch.Tensor.float = torch.float64, torch.float64, torch.Tensor.double
    try:
        yield
    finally:
        torch.float32, torch.float, torch.Tensor.float = kept


def random_model(family, seed):
    """A model with seeded weights, rounded to bfloat16; whatever initializers leave trivial is random too."""
    config = getattr(transformers, family.config_class)(**family.config)
    model = getattr(transformers, family.model_class)._from_config(config, attn_implementation="eager")
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in sorted(model.named_parameters()):
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("bias"):
            noise *= 0.3
        elif tensor.dim() == 1:
            noise = 0.3 * noise + (0.0 if family.zero_centred and "vision" not in name else 1.0)
        else:
            noise *= family.embedding if "embed_tokens" in name else family.head if "lm_head" in name else 0.2
        tensor.data.copy_(noise)
    return model.to(torch.bfloat16).eval()


def save(family, model, folder):
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    family.rewrite(config)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def load(family, folder, change=None, dtype=torch.float64):
    """The model as the folder has it. `change` alters the configuration first."""
    model_class = getattr(transformers, family.model_class)
    config = transformers.AutoConfig.from_pretrained(folder)
    if change:
        change(config)
    model, report = model_class.from_pretrained(
        folder, config=config, dtype=dtype, attn_implementation="eager", output_loading_info=True
    )
    bad = {k: v for k, v in report.items() if v and k != "error_msgs"}
    assert not bad, f"{folder}: {bad}"
    return model.eval()


def logits_of(model, ids, pad_to=0):
    """`[tokens, vocab]`. Padding on the right changes nothing but the longest position, by which longrope chooses."""
    padded = torch.tensor([ids + [3] * (pad_to - len(ids))])
    return model(input_ids=padded, use_cache=False).logits[0, : len(ids)]


@torch.no_grad()
def greedy(model, ids, pad_to):
    tokens, gap = [], float("inf")
    for _ in range(NEW_TOKENS):
        top = logits_of(model, ids + tokens, pad_to)[-1].topk(2)
        tokens.append(top.indices[0].item())
        gap = min(gap, (top.values[0] - top.values[1]).item())
    return tokens, gap


@torch.no_grad()
def sample(model, length, pad_to, seed):
    """Random tokens for a third, then what the model itself says, so that some targets are likely and others are not."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, VOCABULARY, (length // 3,), generator=generator).tolist()
    while len(ids) < length:
        p = (logits_of(model, ids, pad_to)[-1] / 0.6).softmax(-1)
        ids.append(torch.multinomial(p, 1, generator=generator).item())
    return ids


def samples(model, lengths, pad_to):
    """Samples in whose continuations no two tokens are nearly alike."""
    found = []
    for length in lengths:
        for seed in range(1000 * length, 1000 * length + 50):
            ids = sample(model, length, pad_to, seed)
            tokens, gap = greedy(model, ids, pad_to)
            if gap >= LEAST_GAP:
                break
        else:
            sys.exit(f"no sample of {length} tokens has a clear continuation")
        found.append({"ids": ids, "greedy": tokens, "gap": gap, "pad_to": pad_to})
    return found


def least_group_confidence(log_p, size):
    size = min(size, len(log_p))
    return log_p.unfold(0, size, 1).mean(-1).min().exp().clamp(0, 1)


def step(model, taken):
    """The losses of SFT and BFT over all samples as one step, as Equipoise defines them; and what is worth telling."""
    tokens, sft, bft = 0, 0.0, 0.0
    told = {"confidence": [], "sample_weight": [], "mean_probability": []}
    for one in taken:
        ids = one["ids"]
        first = len(ids) // 3
        log_p = logits_of(model, ids, one["pad_to"])[:-1].log_softmax(-1)
        log_p = log_p.gather(1, torch.tensor(ids[1:])[:, None])[first - 1 :, 0]
        fixed = log_p.detach()
        confidence = least_group_confidence(fixed, OBJECTIVE["group_size"])
        weight = 1 - confidence ** OBJECTIVE["gamma"]
        tokens += len(log_p)
        sft = sft - log_p.sum()
        bft = bft + weight * (fixed.exp() * -log_p).sum() / (len(log_p) + EPSILON)
        told["confidence"].append(confidence.item())
        told["sample_weight"].append(weight.item())
        told["mean_probability"].append(fixed.exp().mean().item())
    return sft / tokens, bft / len(taken), tokens, told


def with_adapter(family, model, folder):
    """A random adapter on the model, written as PEFT writes it; the model and its tensors by PEFT's names."""
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=family.targets, lora_dropout=0.0, task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(model, config, autocast_adapter_dtype=False).eval()
    wrapped.peft_config["default"].base_model_name_or_path = f"tests/golden/families/{folder.name}"
    generator = torch.Generator().manual_seed(7)
    lora = {name: p for name, p in sorted(wrapped.named_parameters()) if "lora_" in name}
    for parameter in lora.values():
        parameter.requires_grad_(True)
        parameter.data = (0.1 * torch.randn(parameter.shape, generator=generator)).to(FLOAT32)
    wrapped.save_pretrained(folder / "adapter")
    (folder / "adapter" / "README.md").unlink(missing_ok=True)
    written = folder / "adapter" / "adapter_config.json"
    settings = json.loads(written.read_text())
    if isinstance(settings["target_modules"], list):
        settings["target_modules"].sort()  # a set, in another order each time
    written.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    for parameter in lora.values():
        parameter.data = parameter.data.double()
    return wrapped, {name.replace(".default.", "."): p for name, p in lora.items()}


def round9(value):
    if isinstance(value, (list, tuple)):
        return [round9(one) for one in value]
    return float(f"{value:.9g}")


def expected_of(model, taken):
    with torch.no_grad():
        return [
            {
                "prompt": f"{len(one['ids'])} tokens",
                "input_ids": one["ids"],
                "masked_tokens": len(one["ids"]) // 3,
                "last_logits": round9(logits_of(model, one["ids"], one["pad_to"])[-1].tolist()),
                "greedy": one["greedy"],
                "greedy_gap": round9(one["gap"]),
            }
            for one in taken
        ]


def switches_of(family, folder, taken):
    """By how much the last logits of the first sample differ where a mechanism is switched off."""
    with torch.no_grad():
        right = logits_of(load(family, folder), taken["ids"], taken["pad_to"])[-1]
        differences = {}
        for label, (kind, change) in family.switches.items():
            model = load(family, folder, change if kind == "config" else None)
            if kind == "model":
                change(model)
            other = logits_of(model, taken["ids"], taken["pad_to"])[-1]
            getattr(model, "undo", lambda: None)()
            differences[label] = round9((other - right).abs().max().item())
    weak = {k: v for k, v in differences.items() if v < LEAST_DIFFERENCE}
    assert not weak, f"{folder.name}: these do not matter: {weak}"
    return differences


def write_report(path, report):
    """JSON with each list of numbers on one line."""
    blocks = []
    for entry in report["prompts"]:
        fields = [f"      {json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in entry.items()]
        blocks.append("    {\n" + ",\n".join(fields) + "\n    }")
    head = {k: v for k, v in report.items() if k != "prompts"}
    lines = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in head.items()]
    path.write_text("{\n" + ",\n".join(lines) + ',\n  "prompts": [\n' + ",\n".join(blocks) + "\n  ]\n}\n")


def gradients(model, lora, taken, folder, suffix):
    """Writes the gradients of both losses; the losses, for `expected.json`."""
    sft, bft, tokens, told = step(model, taken)
    for name, loss in (("sft", sft), ("bft", bft)):
        found = torch.autograd.grad(loss, list(lora.values()), retain_graph=True)
        assert all(one.abs().max() > 0 for one in found), "a gradient is zero"
        tensors = {key: one.to(FLOAT32).contiguous() for key, one in zip(lora, found)}
        save_file(tensors, folder / f"gradients_{name}{suffix}.safetensors")
    return {
        "supervised_tokens": tokens,
        "sft": {"loss": round9(sft.item())},
        "bft": {"loss": round9(bft.item()), **OBJECTIVE, **{k: round9(v) for k, v in told.items()}},
    }


def largest_float32_difference(family, folder, taken):
    """By how much transformers in float32, as it is, differs in the last logits of the samples."""
    with torch.no_grad():
        model = load(family, folder, dtype=FLOAT32)
        differences = []
        for one, right in taken:
            logits = logits_of(model, one["ids"], one["pad_to"])[-1].double()
            differences.append((logits - torch.tensor(right["last_logits"], dtype=torch.float64)).abs().max().item())
        return max(differences)


def make(name, out, llama_cpp, seed):
    family, folder = FAMILIES[name], out / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    save(family, random_model(family, seed), folder)
    sets = [("", family.lengths, 0)]
    if family.long_lengths:
        sets.append(("_long", family.long_lengths, family.original_length + 1))
    for suffix, lengths, pad_to in sets:
        with float64_throughout():
            model = load(family, folder)
            taken = samples(model, lengths, pad_to)
            prompts = expected_of(model, taken)
            switches = switches_of(family, folder, taken[0])
            if family.gguf:
                as_gguf = load(family, folder, family.gguf)
                for prompt, one in zip(prompts, expected_of(as_gguf, taken)):
                    prompt["gguf_last_logits"] = one["last_logits"]
        wrapped, lora = with_adapter(family, model, folder)
        with float64_throughout():
            losses = gradients(wrapped, lora, taken, folder, suffix)
            for prompt, one in zip(prompts, expected_of(wrapped, taken)):
                prompt["adapter_last_logits"] = one["last_logits"]
        versions = {m.__name__: m.__version__ for m in (torch, transformers, peft)}
        difference = largest_float32_difference(family, folder, list(zip(taken, prompts)))
        report = {
            "made_by": "tests/parity/families.py", "versions": versions, "dtype": "float64",
            "float32_difference": round9(difference), "switches": switches, **losses, "prompts": prompts,
        }
        write_report(folder / f"expected{suffix}.json", report)
        print(f"{name}{suffix}: float32 differs by {difference:.1e}; SFT {losses['sft']['loss']:.4f}, BFT "
              f"{losses['bft']['loss']:.4f}, s {losses['bft']['sample_weight']}; switched off: {switches}")
    if llama_cpp:
        family_gguf.convert(family, folder, out, llama_cpp, folder / "model.gguf")
    sizes = {path.name: path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    print(f"{name}: {sum(sizes.values())} bytes: {sizes}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--llama-cpp", type=Path, help="llama.cpp's sources: write model.gguf too")
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--seed", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    for name in args.only:
        make(name, args.out, args.llama_cpp, args.seed)


if __name__ == "__main__":
    main()
