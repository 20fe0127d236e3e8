"""adapter_config.json as the installed PEFT writes it, with every key that it has, for adapters of several kinds.

    python tests/parity/peft_configs.py --out tests/golden/lint
"""

import argparse
import json
import tempfile
from pathlib import Path

from peft import LoraConfig

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
COMMON = {
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "r": 16,
    "lora_alpha": 32,
    "target_modules": MODULES,
    "inference_mode": True,
}
CONFIGS = {
    "plain": {},
    "dora": {"use_dora": True},
    "rslora_rank_pattern": {"use_rslora": True, "rank_pattern": {"q_proj": 32}, "alpha_pattern": {"q_proj": 64}},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "pissa": {"init_lora_weights": "pissa"},
    "bias_and_tokens": {"bias": "lora_only", "lora_bias": True, "trainable_token_indices": [5, 7]},
    "alora": {"alora_invocation_tokens": [1, 2, 3]},
    "target_parameters": {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj"]},
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, changes in CONFIGS.items():
        with tempfile.TemporaryDirectory() as folder:
            LoraConfig(**{**COMMON, **changes}).save_pretrained(folder)
            config = json.loads((Path(folder) / "adapter_config.json").read_text())
        # A set has another order each time.
        if isinstance(config["target_modules"], list):
            config["target_modules"].sort()
        (args.out / f"{name}.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
