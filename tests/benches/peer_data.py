"""The peer's way from MedQuAD to tokens and labels: `datasets` and transformers' tokenizer. Run by bench_data.py.

Prints one line of JSON: rows, tokens, learnt tokens, and the seconds of reading and of tokenizing.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

IGNORED = -100


def messages(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def labels(ids: list[int], given: int) -> list[int]:
    """What is behind the given tokens, but for the newline that the template writes after the end of the answer."""
    return [IGNORED] * given + ids[given:-1] + [IGNORED]


def by_prefix(tokenizer: Any, row: dict[str, Any]) -> dict[str, list[int]]:
    """The conversation and its beginning, both tokenized: what is behind the beginning is learnt."""
    turns = messages(row["question"], row["answer"])
    ids = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    given = tokenizer.apply_chat_template(turns[:1], tokenize=True, add_generation_prompt=True, return_dict=False)
    return {"input_ids": ids, "labels": labels(ids, len(given))}


def by_mask(tokenizer: Any, row: dict[str, Any]) -> dict[str, list[int]]:
    """The conversation once, with the mask that transformers makes of the template's generation blocks."""
    told = tokenizer.apply_chat_template(
        messages(row["question"], row["answer"]), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    ids = told["input_ids"]
    return {"input_ids": ids, "labels": [i if m else IGNORED for i, m in zip(ids, told["assistant_masks"])]}


def by_batch(tokenizer: Any, rows: dict[str, list[Any]]) -> dict[str, list[list[int]]]:
    """As `by_prefix`, a thousand rows at a time, which the tokenizer works at with threads of its own."""
    turns = [messages(question, answer) for question, answer in zip(rows["question"], rows["answer"])]
    render = tokenizer.apply_chat_template
    whole = tokenizer([render(t, tokenize=False) for t in turns], add_special_tokens=False)["input_ids"]
    starts = [render(t[:1], tokenize=False, add_generation_prompt=True) for t in turns]
    given = [len(ids) for ids in tokenizer(starts, add_special_tokens=False)["input_ids"]]
    return {"input_ids": whole, "labels": [labels(ids, n) for n, ids in zip(given, whole)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--way", choices=("prefix", "mask", "batch"), required=True)
    parser.add_argument("--processes", type=int, required=True)
    args = parser.parse_args()
    import datasets
    import transformers

    datasets.disable_progress_bars()
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.tokenizer)
    if args.way == "mask":
        # The model's own template has no generation blocks: this one writes the same text.
        tokenizer.chat_template = (
            "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
            "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
            "{{ '<|im_start|>' + m['role'] + '\n' }}"
            "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
            "{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        )
    with tempfile.TemporaryDirectory() as cache:
        begin = time.perf_counter()
        rows = datasets.load_dataset("json", data_files=str(args.rows), split="train", cache_dir=cache)
        read = time.perf_counter()
        ways = {"prefix": by_prefix, "mask": by_mask, "batch": by_batch}
        made = rows.map(
            lambda row: ways[args.way](tokenizer, row),
            batched=args.way == "batch",
            num_proc=None if args.way == "batch" else args.processes,
            remove_columns=rows.column_names,
        )
        done = time.perf_counter()
        tokens = learnt = 0
        for row in made:
            tokens += len(row["input_ids"])
            learnt += sum(label != IGNORED for label in row["labels"])
    print(json.dumps({
        "rows": len(made), "tokens": tokens, "supervised_tokens": learnt,
        "reading": read - begin, "tokenizing": done - read,
    }))


if __name__ == "__main__":
    main()
