#!/usr/bin/env python3
"""What transformers makes of bases that say two things, or less than one expects.

Each variant is `tests/reported/cases/tiny-base` with a changed config.json and, in some, further tensors. The loss is the
mean of -log p over the completions' tokens and the end-of-text token, prompt and completion tokenized apart, in float32.

    python tests/parity/base_contradictions.py > tests/golden/base_contradictions.json
"""

import json
import pathlib
import shutil
import sys
import tempfile

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
CASES = ROOT / "tests/reported/cases"
ROWS = [json.loads(line) for line in (CASES / "10-rope-theta-twice/rows.jsonl").open()]

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}

# name, keys to set, keys to remove, further tensors
VARIANTS = [
    ("as it is", {}, [], None),
    ("theta at the top and in rope_parameters", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, [], None),
    ("theta in rope_parameters alone", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, ["rope_theta"], None),
    ("theta in rope_scaling", {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}}, [], None),
    ("no theta", {}, ["rope_theta"], None),
    ("rope_scaling of the old form", {"rope_scaling": {"type": "linear", "factor": 4.0}}, [], None),
    ("type and rope_type differ", {"rope_scaling": {"type": "llama3", "rope_type": "linear", "factor": 4.0}}, [], None),
    ("rope_scaling and rope_parameters differ", {"rope_scaling": {"type": "linear", "factor": 4.0},
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, [], None),
    ("rope_scaling is empty", {"rope_scaling": {}, "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}}, [], None),
    ("rope_parameters without theta", {"rope_parameters": {"rope_type": "linear", "factor": 4.0}, "rope_theta": 500.0}, [], None),
    ("llama3 without the original length", {"rope_scaling": LLAMA3}, [], None),
    ("llama3 with the original length at the top", {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 1000},
        "original_max_position_embeddings": 64}, [], None),
    ("llama3 with its original length", {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 64}}, [], None),
    ("tied, and a head that is the embedding", {}, [], "same head"),
    ("tied, and a head that differs", {}, [], "other head"),
    ("tying is not said, and a head that differs", {}, ["tie_word_embeddings"], "other head"),
    ("not tied, and a head that differs", {"tie_word_embeddings": False}, [], "other head"),
    ("biases that the configuration denies", {}, [], "biases"),
    ("biases that the configuration has", {"attention_bias": True}, [], "biases"),
    ("no number of key and value heads", {}, ["num_key_value_heads"], None),
    ("head_dim is not said", {}, ["head_dim"], None),
    ("head_dim is null", {"head_dim": None}, [], None),
    ("head_dim is not hidden over heads", {"num_attention_heads": 4, "head_dim": 4, "num_key_value_heads": 2}, [], None),
    ("another dtype than the tensors have", {"torch_dtype": "float16", "dtype": "float32"}, [], None),
    ("no epsilon", {}, ["rms_norm_eps"], None),
    ("no positions", {}, ["max_position_embeddings"], None),
    ("fewer layers than the file has", {"num_hidden_layers": 1}, [], None),
    ("a vocabulary of another size", {"vocab_size": 300}, [], None),
    ("rope_type is null beside a type", {"rope_scaling": {"type": "linear", "rope_type": None, "factor": 4.0}}, [], None),
]


def tensors(kind, state):
    embedding = state["model.embed_tokens.weight"]
    if kind == "same head":
        return {"lm_head.weight": embedding.clone()}
    if kind == "other head":
        return {"lm_head.weight": embedding.flip(0).contiguous()}
    if kind == "biases":
        return {f"model.layers.{layer}.self_attn.{name}_proj.bias": torch.full((size,), 0.5, dtype=torch.bfloat16)
                for layer in (0, 1) for name, size in (("q", 16), ("k", 8), ("v", 8), ("o", 16))}
    return {}


def loss(base):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base)
    total, count = 0.0, 0
    for row in ROWS:
        prompt = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
        completion = tokenizer(row["completion"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        ids = torch.tensor([prompt + completion])
        with torch.no_grad():
            log_p = model(ids).logits[0].log_softmax(-1)
        for place, token in enumerate(completion):
            total -= log_p[len(prompt) + place - 1, token].item()
        count += len(completion)
    return round(total / count, 6)


def main():
    results = []
    for name, changed, removed, kind in VARIANTS:
        with tempfile.TemporaryDirectory() as folder:
            base = pathlib.Path(folder) / "base"
            shutil.copytree(CASES / "tiny-base", base)
            config = json.loads((base / "config.json").read_text())
            config = {key: value for key, value in {**config, **changed}.items() if key not in removed}
            (base / "config.json").write_text(json.dumps(config))
            state = load_file(base / "model.safetensors")
            if kind:
                save_file({**state, **tensors(kind, state)}, base / "model.safetensors", metadata={"format": "pt"})
            try:
                outcome = {"loss": loss(base)}
            except Exception as error:  # noqa: BLE001
                print(name, type(error).__name__, str(error)[:200], file=sys.stderr)
                outcome = {"loss": None}
        results.append({"name": name, "set": changed, "remove": removed, "tensors": kind, **outcome})
    json.dump({"made_by": "tests/parity/base_contradictions.py",
               "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
               "variants": results}, sys.stdout, indent=1)
    print()


main()
