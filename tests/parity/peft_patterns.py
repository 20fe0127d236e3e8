#!/usr/bin/env python3
"""Adapters whose settings are regular expressions, and what PEFT makes of each: the logits of the last position.

    python tests/parity/peft_patterns.py

writes tests/golden/peft_patterns: a folder for each adapter on `tests/reported/cases/tiny-base`, and expected.json. Where a
variant has `edit`, the configuration is changed after saving, so that PEFT leaves some of the tensors out.
"""

import json
import pathlib
import shutil

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

ROOT = pathlib.Path(__file__).resolve().parents[2]
BASE = ROOT / "tests/reported/cases/tiny-base"
OUT = ROOT / "tests/golden/peft_patterns"
IDS = [10, 70, 33, 101, 5, 64, 250, 7]

VARIANTS = {
    # PEFT's own example of a pattern
    "anchored": dict(target_modules=["q_proj", "down_proj"], rank_pattern={"^model.layers.0.self_attn.q_proj": 2},
                     alpha_pattern={r"model\.layers\.1\..*": 3}),
    "lookahead": dict(target_modules=["q_proj", "v_proj"], rank_pattern={r"layers\.(?!0\.)\d+\.self_attn\.\w+": 2},
                      alpha_pattern={r"layers\.\d\.self_attn\.(?P<part>q|k)_proj": 32}),
    # the first key that matches counts, in the order of the file, which PEFT sorts
    "order": dict(target_modules=["q_proj", "v_proj"], rank_pattern={r".*\.v_proj": 6, r".*_proj": 3},
                  alpha_pattern={r".*": 5, "q_proj": 50}),
    "rslora": dict(target_modules=["q_proj", "v_proj"], rank_pattern={r".*\.1\.self_attn\.(v|o)_proj": 8}, use_rslora=True),
    "targets_by_regex": dict(target_modules=r".*\.layers\.\d+\.(self_attn|mlp)\.(q|down)_proj"),
    "layers": dict(target_modules=["q_proj", "v_proj"], layers_to_transform=[1], layers_pattern="layers"),
    "excluded": dict(target_modules="all-linear", exclude_modules=r".*\.mlp\..*"),
    # tensors are there that the configuration does not name
    "unnamed_by_targets": dict(target_modules=["q_proj", "v_proj"], edit=dict(target_modules=["v_proj"])),
    "unnamed_by_layers": dict(target_modules=["q_proj", "v_proj"], edit=dict(layers_to_transform=[0])),
    "unnamed_by_exclusion": dict(target_modules=["q_proj", "v_proj"], edit=dict(exclude_modules=["0.self_attn.q_proj"])),
}


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    logits = {}
    for name, settings in VARIANTS.items():
        settings = dict(settings)
        edit = settings.pop("edit", {})
        torch.manual_seed(1)
        base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
        model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, **settings))
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(parameter, std=0.5)
        folder = OUT / name
        model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        path = folder / "adapter_config.json"
        config = {**json.loads(path.read_text()), **edit, "base_model_name_or_path": "tiny-base"}
        path.write_text(json.dumps(config, indent=1) + "\n")
        base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
        loaded = PeftModel.from_pretrained(base, folder)
        with torch.no_grad():
            logits[name] = [round(x, 6) for x in loaded(torch.tensor([IDS])).logits[0, -1].tolist()]
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    expected = {"made_by": "tests/parity/peft_patterns.py", "versions": versions, "input_ids": IDS, "last_logits": logits}
    (OUT / "expected.json").write_text(json.dumps(expected) + "\n")


main()
