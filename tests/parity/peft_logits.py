#!/usr/bin/env python3
"""Write golden logits: a base model, with or without a PEFT adapter, as transformers sees it.

For each prompt: the token ids, the logits of the last position (all of them, six decimals) and
a greedy continuation. The base is read as float32, so the numbers are the format's own.

    python peft_logits.py --base BASE --out golden.json
    python peft_logits.py --base BASE --adapter ADAPTER --out golden.json

BASE is a Hugging Face folder, ADAPTER a PEFT folder (adapter_config.json and
adapter_model.safetensors). Prompts come from --prompts, a JSON array of strings, or are the
three below. They are tokenized as they stand: no chat template, no BOS added; special tokens
written in them count as special tokens.

Each entry's `greedy_gap` is the smallest lead of the chosen token over the runner-up in the
continuation. Where it is tiny, another correct program may choose differently.
"""

import argparse
import json
from pathlib import Path

import peft
import torch
import transformers

PROMPTS = [
    "DNA repair\nThe process of",
    "TP53: tumor",
    "<|im_start|>user\nDefine the biological process term.\n\nmitotic spindle assembly<|im_end|>\n"
    "<|im_start|>assistant\n",
]


@torch.no_grad()
def last_logits(model, ids):
    """Logits of the last position, `[vocab]`. No cache: each call is a plain forward."""
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].float()


def golden(model, tokenizer, prompt, new_tokens):
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    logits = last_logits(model, ids)
    greedy, gap, following = [], float("inf"), logits
    for _ in range(new_tokens):
        top = following.topk(2)
        greedy.append(top.indices[0].item())
        gap = min(gap, (top.values[0] - top.values[1]).item())
        following = last_logits(model, ids + greedy)
    return {
        "prompt": prompt,
        "input_ids": ids,
        "last_logits": [round(value, 6) for value in logits.tolist()],
        "greedy": greedy,
        "greedy_text": tokenizer.decode(greedy, skip_special_tokens=False),
        "greedy_gap": round(gap, 6),
    }


def write(path, report):
    """JSON with each list of numbers on one line: small, and it can still be read."""
    head = {k: v for k, v in report.items() if k != "prompts"}
    blocks = []
    for entry in report["prompts"]:
        fields = [f"      {json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in entry.items()]
        blocks.append("    {\n" + ",\n".join(fields) + "\n    }")
    text = json.dumps(head, indent=2)[:-2] + ',\n  "prompts": [\n' + ",\n".join(blocks) + "\n  ]\n}\n"
    json.loads(text)
    path.write_text(text, encoding="utf-8")
    print(f"{path}: {len(report['prompts'])} prompts, {len(text.encode())} bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--base", type=Path, required=True, help="Hugging Face model folder")
    parser.add_argument("--adapter", type=Path, help="PEFT adapter folder")
    parser.add_argument("--prompts", type=Path, help="JSON array of strings")
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    torch.set_num_threads(1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.base)
    model = transformers.AutoModelForCausalLM.from_pretrained(args.base, dtype=torch.float32)
    if args.adapter:
        model = peft.PeftModel.from_pretrained(model, args.adapter)
    model.eval()

    prompts = json.loads(args.prompts.read_text(encoding="utf-8")) if args.prompts else PROMPTS
    report = {
        "made_by": "tests/parity/peft_logits.py",
        "versions": {m.__name__: m.__version__ for m in (torch, transformers, peft)},
        "dtype": "float32",
        "adapter": bool(args.adapter),
        "prompts": [golden(model, tokenizer, prompt, args.new_tokens) for prompt in prompts],
    }
    write(args.out, report)


if __name__ == "__main__":
    main()
