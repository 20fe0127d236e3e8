#!/usr/bin/env python3
"""Write a tiny random Llama with Llama 3's rope scaling, and the logits transformers gives.

The input is 200 tokens, longer than original_max_position_embeddings (64), and the head is
wide enough for all three bands of the rule: kept, blended and divided frequencies. The script
checks that leaving the scaling out changes the logits, so a test on them means something.

    python rope_llama3.py --out tests/golden/tiny_llama3_rope

Writes config.json, model.safetensors (float32) and expected.json: `input_ids`, and
`last_logits`, the logits of the last position.
"""

import argparse
import json
import math
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

THETA = 500000.0
SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SHAPE = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def bands():
    """How many frequencies are kept, blended and divided: none of the three may be zero."""
    kept = blended = divided = 0
    original = SCALING["original_max_position_embeddings"]
    for i in range(0, SHAPE["head_dim"], 2):
        wavelength = 2 * math.pi * THETA ** (i / SHAPE["head_dim"])
        if wavelength < original / SCALING["high_freq_factor"]:
            kept += 1
        elif wavelength > original / SCALING["low_freq_factor"]:
            divided += 1
        else:
            blended += 1
    return kept, blended, divided


def random_weights(model, seed):
    """Seeded weights, large enough for attention to be far from uniform; norms are not all 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in sorted(model.state_dict().items()):
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.dim() == 1:
            tensor.copy_(1.0 + 0.1 * noise)
        elif "embed_tokens" in name:
            tensor.copy_(noise)
        else:
            tensor.copy_(noise * 1.5 / tensor.shape[1] ** 0.5)


@torch.no_grad()
def last_logits(model, ids):
    return model.eval()(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--length", type=int, default=200)
    args = parser.parse_args()
    torch.set_num_threads(1)

    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **SHAPE,
        "rope_theta": THETA,
        "rope_scaling": SCALING,
        "rope_parameters": {**SCALING, "rope_theta": THETA},
        "torch_dtype": "float32",
    }
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, rope_parameters=dict(config["rope_parameters"])))
    with torch.no_grad():
        random_weights(model, args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file(weights, args.out / "model.safetensors", metadata={"format": "pt"})
    (args.out / "model.safetensors").chmod(0o644)

    generator = torch.Generator().manual_seed(args.seed + 1)
    ids = torch.randint(2, SHAPE["vocab_size"], (args.length,), generator=generator).tolist()
    read_back = LlamaForCausalLM.from_pretrained(args.out, dtype=torch.float32)
    logits = last_logits(read_back, ids)
    assert torch.equal(logits, last_logits(model, ids)), "the folder gives other logits"

    # The same folder by the older form of the config alone, and without any scaling.
    older = {**SHAPE, "rope_theta": THETA, "rope_scaling": dict(SCALING)}
    plain = {**SHAPE, "rope_theta": THETA}
    differences = []
    for variant in (older, plain):
        other = LlamaForCausalLM(LlamaConfig(**variant))
        other.load_state_dict(weights)
        differences.append((last_logits(other, ids) - logits).abs().max().item())
    assert differences[0] == 0.0, "rope_scaling and rope_parameters disagree"
    assert differences[1] > 0.1, "the scaling makes no difference: nothing is tested"
    assert min(bands()) > 0, "a band of the rule is empty"

    expected = {
        "made_by": "tests/parity/rope_llama3.py",
        "versions": {m.__name__: m.__version__ for m in (torch, transformers)},
        "input_ids": ids,
        "last_logits": [round(value, 6) for value in logits.tolist()],
        "largest_difference_without_scaling": round(differences[1], 6),
    }
    lines = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in expected.items()]
    (args.out / "expected.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{args.out}: bands kept, blended, divided: {bands()}; without scaling the logits "
          f"differ by up to {differences[1]:.3f}")


if __name__ == "__main__":
    main()
