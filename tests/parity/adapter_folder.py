#!/usr/bin/env python3
"""Loads an adapter's folder as its users do: AutoTokenizer, AutoPeftModelForCausalLM, and the card as the Hub reads it.

    python tests/parity/adapter_folder.py adapters/NAME [--base FOLDER]

`--base` stands for the base's Hub id where there is no network. Prints the card's data, the prompt and an answer.
"""

import argparse
import pathlib

import torch
from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("adapter", type=pathlib.Path)
    parser.add_argument("--base")
    arguments = parser.parse_args()
    card = ModelCard.load(arguments.adapter / "README.md")
    print("card:", card.data.to_dict())
    assert card.data.library_name == "peft" and "```python" in card.text
    tokenizer = AutoTokenizer.from_pretrained(arguments.adapter)
    if arguments.base:
        base = AutoModelForCausalLM.from_pretrained(arguments.base, dtype=torch.float32)
        model = PeftModel.from_pretrained(base, arguments.adapter)
    else:
        model = AutoPeftModelForCausalLM.from_pretrained(arguments.adapter, dtype=torch.float32)
    messages = [{"role": "user", "content": "autophagy"}]
    if tokenizer.chat_template:
        print("prompt:", repr(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)))
        inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    else:
        inputs = tokenizer("autophagy", return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=32, do_sample=False)
    print("answer:", repr(tokenizer.decode(output[0][inputs["input_ids"].shape[1]:], skip_special_tokens=True)))


main()
