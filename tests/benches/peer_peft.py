#!/usr/bin/env python3
"""PyTorch + PEFT's side of the benchmark. The driver, bench_peft.py, runs it in the virtual environment.

    python peer_peft.py prepare SPEC.json         tokenizes once for both sides; prints what the model counts
    python peer_peft.py gemm --threads N          the machine's GEMM peak, f32 and bf16
    python peer_peft.py train ...                 one training run

Each prints JSON on stdout, one object a line, as it goes.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

IGNORED = -100
# Coprime to most numbers of rows, so that every such step through the file meets other questions.
STRIDE = 7919
GEMM_SHAPES = ((2048, 2048, 2048), (1024, 576, 1536))
GEMM_REPEATS = 30
LORA_ALPHA_BY_R = 2


def say(event: str, **fields: object) -> None:
    """Prints one line, at once: the driver reads the time at which it comes."""
    print(json.dumps({"event": event, **fields}), flush=True)


# --- prepare: rows of text for Equipoise, and their tokens for the peer


class Tokens:
    """The model's tokenizer, as Equipoise uses it on rows of prompt and completion: each apart, EOS behind."""

    def __init__(self, model: str) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(model)
        first = self.tokenizer("x")["input_ids"][0]
        self.leading = [first] if first == self.tokenizer.bos_token_id else []

    def text(self, text: str) -> list[int]:
        """The tokens of a text alone."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def row(self, prompt: str, completion: str, length: int) -> tuple[list[int], int]:
        """Tokens of a row, cut to `length`, and how many of them are its prompt's."""
        given = self.leading + (self.text(prompt) if prompt else [])
        ids = given + self.text(completion) + [self.tokenizer.eos_token_id]
        return ids[:length], len(given)


def questions(medquad: Path) -> list[tuple[str, str]]:
    """Questions and answers; rows that lack one of them are left out."""
    with medquad.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file if line.strip()]
    pairs = [((row.get("question") or "").strip(), (row.get("answer") or "").strip()) for row in rows]
    return [pair for pair in pairs if all(pair)]


def walk(pairs: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """The pairs in a fixed order that mixes the file's sources, again and again."""
    place = 0
    while True:
        yield pairs[place]
        place = (place + STRIDE) % len(pairs)


def full_rows(tokens: Tokens, pairs: list[tuple[str, str]], length: int) -> Iterator[tuple[str, str]]:
    """Rows without a prompt, of at least `length` tokens: answers one behind the other."""
    source = walk(pairs)
    while True:
        text, counted = "", 0
        # A few tokens may melt into one where answers meet.
        while counted < length + 16:
            answer = next(source)[1]
            text = f"{text}\n\n{answer}" if text else answer
            counted += len(tokens.text(answer))
        yield "", text


def masked_rows(tokens: Tokens, pairs: list[tuple[str, str]], length: int) -> Iterator[tuple[str, str]]:
    """A question is given, its answer is learnt. Prompts that leave no room for an answer are left out."""
    for question, answer in walk(pairs):
        if len(tokens.text(f"{question}\n")) < length // 2:
            yield f"{question}\n", answer


def context_rows(tokens: Tokens, pairs: list[tuple[str, str]], length: int) -> Iterator[tuple[str, str]]:
    """An answer is given, its question is learnt: most tokens are masked. Rows of half to the whole length."""
    for question, answer in walk(pairs):
        prompt = f"{answer}\n\nQuestion:"
        if length // 2 <= len(tokens.row(prompt, f" {question}", 2 * length)[0]) <= length:
            yield prompt, f" {question}"


ROWS = {"full": full_rows, "masked": masked_rows, "context": context_rows}


def prepare(spec: dict[str, Any]) -> None:
    """Writes for each data set `NAME.jsonl` (text) and `NAME.ids.jsonl` (tokens), row by row the same."""
    tokens, pairs = Tokens(spec["model"]), questions(Path(spec["medquad"]))
    for name, data in spec["data"].items():
        source = ROWS[data["kind"]](tokens, pairs, data["length"])
        stem = Path(spec["folder"]) / name
        with open(f"{stem}.jsonl", "w", encoding="utf-8") as text, open(f"{stem}.ids.jsonl", "w") as ids:
            for _ in range(data["rows"]):
                prompt, completion = next(source)
                row, given = tokens.row(prompt, completion, data["length"])
                text.write(json.dumps({"prompt": prompt, "completion": completion}) + "\n")
                ids.write(json.dumps({"ids": row, "given": given}) + "\n")
    say("counts", **counts(spec["model"], spec["rank"]))


def counts(folder: str, rank: int) -> dict[str, int]:
    """What the FLOP of a step are made of. No weights are read for it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {
        "body_parameters": sum(m.weight.numel() for m in linear),
        "head_parameters": head.weight.numel(),
        "lora_parameters": sum(rank * (m.in_features + m.out_features) for m in linear),
        "attention_width": config.num_hidden_layers * config.num_attention_heads * width,
    }


# --- gemm: what the machine can do


def gemm(threads: int) -> None:
    """The best of several products of each shape and type, in FLOP/s."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        for m, k, n in GEMM_SHAPES:
            x, weight = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype)
            best = min(timed(lambda: torch.nn.functional.linear(x, weight)) for _ in range(GEMM_REPEATS))
            say("gemm", dtype=name, shape=[m, k, n], flops=2 * m * k * n / best)


def timed(work: Any) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


# --- train: one run


def batches(path: Path) -> list[list[dict[str, Any]]]:
    """One list of rows a step."""
    with path.open() as file:
        return [json.loads(line) for line in file]


def collate(rows: list[dict[str, Any]], pad: int) -> dict[str, Any]:
    """Rows padded on the right to the longest. Without padding no mask is given: torch's attention is faster so."""
    import torch

    width = max(len(row["ids"]) for row in rows)
    ids = torch.full((len(rows), width), pad)
    labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
    for i, row in enumerate(rows):
        tokens = torch.tensor(row["ids"])
        ids[i, : len(tokens)] = tokens
        labels[i, row["given"] : len(tokens)] = tokens[row["given"] :]
        mask[i, : len(tokens)] = 1
    batch = {"input_ids": ids, "labels": labels}
    return batch if bool(mask.all()) else {**batch, "attention_mask": mask}


def build(args: argparse.Namespace) -> Any:
    """The model with its adapter, ready to train."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if args.mode in ("bf16", "bf16-all") else torch.float32
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype, attn_implementation="sdpa")
    model.config.use_cache = False
    lora = peft.LoraConfig(
        r=args.rank,
        lora_alpha=LORA_ALPHA_BY_R * args.rank,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    # PEFT holds adapters of a bf16 base in f32 unless it is told not to.
    model = peft.get_peft_model(model, lora, autocast_adapter_dtype=args.mode != "bf16-all")
    if args.recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def train(args: argparse.Namespace) -> None:
    """One optimizer step a batch, with its loss, its wall-clock seconds and its tokens."""
    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = build(args)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=args.learning_rate, weight_decay=0.0)
    say("model", lora_parameters=sum(parameter.numel() for parameter in trained), adapter=str(trained[0].dtype))
    for step, rows in enumerate(batches(args.batches), start=1):
        start = time.perf_counter()
        batch = collate(rows, model.config.pad_token_id or 0)
        with torch.autocast("cpu", torch.bfloat16, enabled=args.mode == "autocast"):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value, seconds = loss.item(), time.perf_counter() - start
        supervised = int((batch["labels"][:, 1:] != IGNORED).sum())
        tokens = sum(len(row["ids"]) for row in rows)
        say("step", step=step, loss=value, seconds=seconds, tokens=tokens, supervised_tokens=supervised)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("prepare").add_argument("spec", type=Path)
    commands.add_parser("gemm").add_argument("--threads", type=int, required=True)
    run = commands.add_parser("train")
    run.add_argument("--model", required=True, help="a Hugging Face folder")
    run.add_argument("--batches", type=Path, required=True, help="JSON Lines, the rows of a step each")
    run.add_argument("--mode", choices=("f32", "bf16", "bf16-all", "autocast"), required=True)
    run.add_argument("--recompute", action="store_true")
    run.add_argument("--rank", type=int, required=True)
    run.add_argument("--learning-rate", type=float, required=True)
    run.add_argument("--threads", type=int, required=True)
    return parser.parse_args()


def main() -> None:
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    args = parse()
    if args.command == "prepare":
        prepare(json.loads(args.spec.read_text()))
    elif args.command == "gemm":
        gemm(args.threads)
    else:
        train(args)


if __name__ == "__main__":
    main()
