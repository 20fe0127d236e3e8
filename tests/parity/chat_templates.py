"""Conversations as transformers renders and tokenizes them, for the templates in tests/golden/chat_templates.

    python tests/parity/chat_templates.py

Writes one JSON file beside each template. The tokenizer is the quickstart's, with the family's special tokens added.
"""

import datetime
import json
import pathlib

import jinja2
import transformers
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = ROOT / "tests/golden/chat_templates"
NOW = 1_700_000_000

# Of each template BOS, EOS, the other special tokens of the family, and those that are added but not special.
FAMILIES = {
    "llama3_1": ("<|begin_of_text|>", "<|eot_id|>", ["<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|python_tag|>"], []),
    "llama3_2": ("<|begin_of_text|>", "<|eot_id|>", ["<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|python_tag|>"], []),
    "qwen2_5": (None, "<|im_end|>", ["<|im_start|>"], ["<tool_call>", "</tool_call>"]),
    "qwen3": (None, "<|im_end|>", ["<|im_start|>"], ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]),
    "qwen3_training": (None, "<|im_end|>", ["<|im_start|>"], ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]),
    "smollm2": ("<|im_start|>", "<|im_end|>", [], []),
    "gemma3": ("<bos>", "<eos>", ["<start_of_turn>", "<end_of_turn>"], []),
    "gemma3_training": ("<bos>", "<eos>", ["<start_of_turn>", "<end_of_turn>"], []),
    "mistral_nemo": ("<s>", "</s>", ["[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"], []),
    "phi3": ("<s>", "<|endoftext|>", ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"], []),
    "phi3_5": ("<s>", "<|endoftext|>", ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"], []),
    "llama3": ("<|begin_of_text|>", "<|eot_id|>", ["<|start_header_id|>", "<|end_header_id|>"], []),
    "deepseek_r1_distill": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", ["<｜User｜>", "<｜Assistant｜>"], ["<think>", "</think>"]),
}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "lookup_gene",
            "description": "Finds a gene's \"official\" name <b>& place</b> — é.",
            "parameters": {
                "type": "object",
                "properties": {
                    "symbol": {"type": "string", "description": "The symbol", "enum": ["TP53", "BRCA1"]},
                    "limit": {"type": "integer", "default": 3, "minimum": 0.5},
                },
                "required": ["symbol"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "description": "The time.", "parameters": {"type": "object", "properties": {}}}},
]


def call(name, arguments, identity):
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


SYSTEM = {"role": "system", "content": "You are brief.\n"}
ASK = {"role": "user", "content": "  Where is TP53?\n\n"}
MULTI = [
    {"role": "user", "content": "Where is TP53?"},
    {"role": "assistant", "content": "On chromosome 17, <b>p13.1</b>."},
    {"role": "user", "content": "it's \"é 🧬\"?"},
    {"role": "assistant", "content": "Yes:\n\n- é 🧬\n- {'a': 1}"},
    {"role": "user", "content": "Where is TP53?"},
    {"role": "assistant", "content": "On chromosome 17, <b>p13.1</b>."},
]
USE = [
    {"role": "user", "content": "Find TP53."},
    {"role": "assistant", "content": None, "tool_calls": [call("lookup_gene", {"symbol": "TP53", "limit": 2, "exact": True, "score": 1e-7}, "abcdef123")]},
    {"role": "tool", "tool_call_id": "abcdef123", "name": "lookup_gene", "content": "{\"place\": \"17p13.1\"}"},
    {"role": "assistant", "content": "It is at 17p13.1."},
    {"role": "user", "content": "Thanks. And now?"},
    {"role": "assistant", "content": "Now there is nothing."},
]
PARALLEL = [
    SYSTEM,
    {"role": "user", "content": "Find both."},
    {"role": "assistant", "content": "", "tool_calls": [call("lookup_gene", {"symbol": "it's \"TP53\"\n"}, "abcdef123"), call("now", {}, "ABCDEF456")]},
    {"role": "tool", "tool_call_id": "abcdef123", "name": "lookup_gene", "content": "17p13.1"},
    {"role": "tool", "tool_call_id": "ABCDEF456", "name": "now", "content": "late"},
    {"role": "assistant", "content": "17p13.1, and it is late."},
]
THINKING = [
    {"role": "user", "content": "Where is TP53?"},
    {"role": "assistant", "content": "On 17.", "reasoning_content": "TP53 …\n17."},
    {"role": "user", "content": "And BRCA1?"},
    {"role": "assistant", "content": "<think>\nAlso 17.\n</think>\n\nOn 17 too."},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": "Late.", "reasoning_content": "It is late."},
]
THINKING_USE = [
    {"role": "user", "content": "Find TP53."},
    {"role": "assistant", "content": "Let me see.", "reasoning_content": "I look.", "tool_calls": [call("lookup_gene", {"symbol": "TP53"}, "abcdef123")]},
    {"role": "tool", "tool_call_id": "abcdef123", "name": "lookup_gene", "content": "17p13.1"},
    {"role": "assistant", "content": "17p13.1.", "reasoning_content": "Found."},
    {"role": "user", "content": "And BRCA1?"},
    {"role": "assistant", "content": None, "tool_calls": [call("lookup_gene", {"symbol": "BRCA1"}, "ABCDEF456")]},
    {"role": "tool", "tool_call_id": "ABCDEF456", "name": "lookup_gene", "content": "17q21.31"},
    {"role": "assistant", "content": "17q21.31.", "reasoning_content": "Found again."},
]

# Name, messages, tools.
CASES = [
    ("a question", [ASK], None),
    ("a system message and a question", [SYSTEM, ASK], None),
    ("several turns", MULTI, None),
    ("a system message and several turns", [SYSTEM, *MULTI], None),
    ("white space around answers", [ASK, {"role": "assistant", "content": "\n  On 17.  \n"}], None),
    ("an empty system message", [{"role": "system", "content": ""}, ASK], None),
    ("tools and a question", [SYSTEM, ASK], TOOLS),
    ("tools without a system message", [ASK], TOOLS),
    ("a tool is used", USE, TOOLS),
    ("a tool is used that is not described", USE, None),
    ("two tools are used at once", PARALLEL, TOOLS),
    ("thoughts", THINKING, None),
    ("thoughts and tools", THINKING_USE, TOOLS),
    ("two questions in a row", [ASK, ASK], None),
    ("an answer at the beginning", [{"role": "assistant", "content": "Hello."}, ASK], None),
    ("a system message in the middle", [ASK, {"role": "assistant", "content": "a"}, SYSTEM, ASK], None),
    ("parts in place of text", [{"role": "user", "content": [{"type": "text", "text": "Where is TP53?"}]}, {"role": "assistant", "content": [{"type": "text", "text": "On 17."}]}], None),
]


class Fixed(datetime.datetime):
    """What the templates take for now."""

    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(NOW, datetime.timezone.utc).replace(tzinfo=None)


def tokenizer(family):
    bos, eos, special, added = FAMILIES.get(family, ("<s>", "</s>", [], []))
    made = PreTrainedTokenizerFast(tokenizer_file=str(ROOT / "examples/gene_ontology/base/tokenizer.json"))
    marks = [mark for mark in (bos, eos, *special) if mark]
    made.add_tokens(marks, special_tokens=True)
    made.add_tokens(added)
    made.bos_token, made.eos_token = bos, eos
    made.chat_template = (FOLDER / f"{family}.jinja").read_text()
    return made, {"bos": bos, "eos": eos, "special": marks, "added": added}


def one(made, messages, tools, prompt):
    """What transformers makes of a conversation."""
    try:
        text = made.apply_chat_template(messages, tools=tools, add_generation_prompt=prompt, tokenize=False)
    except jinja2.exceptions.TemplateError as error:
        return {"refused": str(error)} if type(error) is jinja2.exceptions.TemplateError else {"fails": str(error)}
    except (TypeError, AttributeError, ValueError) as error:
        return {"fails": str(error)}
    result = {"text": text, "ids": made(text, add_special_tokens=False)["input_ids"]}
    if "generation %}" in made.chat_template and not prompt:
        whole = made.apply_chat_template(messages, tools=tools, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        assert whole["input_ids"] == result["ids"]
        result["mask"] = "".join(map(str, whole["assistant_masks"]))
    return result


def main():
    chat_template_utils.datetime = Fixed
    for path in sorted(FOLDER.glob("*.jinja")):
        made, header = tokenizer(path.stem)
        cases = [
            {"name": name, "messages": messages, "tools": tools, "add_generation_prompt": prompt, **one(made, messages, tools, prompt)}
            for name, messages, tools in CASES
            for prompt in (False, True)
        ]
        header = {"made_by": "tests/parity/chat_templates.py", "transformers": transformers.__version__, "now": NOW, **header}
        lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
        head = json.dumps(header, ensure_ascii=False)[:-1]
        path.with_suffix(".json").write_text(f'{head}, "cases": [\n{lines}\n]}}\n')
        told = sum("text" in case for case in cases)
        print(f"{path.stem}: {told} of {len(cases)} cases rendered")


if __name__ == "__main__":
    main()
