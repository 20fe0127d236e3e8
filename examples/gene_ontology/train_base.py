#!/usr/bin/env python3
"""Train the small base model of this folder from scratch, tokenizer included.

The text: every Gene Ontology definition, all three branches, as "<term>\\n<definition>",
and every human gene as "<symbol>: <name>", each closed by <|endoftext|>. A few dozen
greetings in ChatML give <|im_start|> and <|im_end|> embeddings that are not random. Held-out
ids (see make_data.py) and the ids in --leave-out are in neither the tokenizer's text nor
the model's. The instruction task itself is not in it: that is left to fine-tuning.

Writes a Hugging Face folder: config.json, model.safetensors (bfloat16), tokenizer.json,
tokenizer_config.json, generation_config.json.

    python train_base.py --source RAW --leave-out RAW/GO_terms.csv --out base

Needs torch, transformers, tokenizers, safetensors. Runs on two CPU cores in under half an hour.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from make_data import is_held_out, read_jsonl, read_left_out

END, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = [END, IM_START, IM_END]
VOCAB = 2048

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}

GREETINGS = [
    ("Hello.", "Hello."), ("Hi.", "Hello."), ("Good morning.", "Good morning."),
    ("Good evening.", "Good evening."), ("Thank you.", "You are welcome."),
    ("Thanks.", "You are welcome."), ("How are you?", "I am well."),
    ("Are you ready?", "Yes."), ("Goodbye.", "Goodbye."), ("See you.", "Goodbye."),
]


def read_documents(source, left_out):
    """Two lists of texts: to train on, and held out."""
    train, held_out = [], []
    for entry in read_jsonl(source / "go_definitions.jsonl"):
        text = f"{entry['term']}\n{entry['definition']}"
        if is_held_out(entry["id"]):
            held_out.append(text)
        elif entry["id"] not in left_out:
            train.append(text)
    for line in (source / "human_gene_names.tsv").read_text(encoding="utf-8").splitlines():
        symbol, name = line.split("\t")
        train.append(f"{symbol}: {name}")
    for user, assistant in GREETINGS * 12:
        train.append(f"{IM_START}user\n{user}{IM_END}\n{IM_START}assistant\n{assistant}{IM_END}\n")
    return train, held_out


def train_tokenizer(documents):
    """Byte-level BPE with GPT-2's split; the special tokens are ids 0, 1 and 2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # The special tokens have ids of their own, so their letters are no text to learn from.
    tokenizer.train_from_iterator((d for d in documents if IM_START not in d), trainer)
    return tokenizer


def pack(encoded, row_length):
    """Documents end to end, cut into rows; the last, short row is dropped."""
    flat = torch.tensor([token for document in encoded for token in document])
    rows = len(flat) // row_length
    return flat[: rows * row_length].view(rows, row_length)


@torch.no_grad()
def mean_loss(model, rows):
    """Mean negative log-likelihood a token, in nats."""
    model.eval()
    losses = [model(input_ids=part, labels=part).loss * len(part) for part in rows.split(16)]
    model.train()
    return (sum(losses) / len(rows)).item()


def learning_rate(step, done, args):
    """Linear warm-up, then a cosine down to a twentieth of the peak. `done` is 0 to 1."""
    if step < args.warmup:
        return args.lr * (step + 1) / args.warmup
    return args.lr * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))


def train_model(model, encoded, validation, args):
    order = random.Random(args.seed)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95))
    batches, start = iter(()), time.time()
    for step in range(args.steps):
        # A slow machine ends the schedule earlier, at the time limit, instead of being cut off.
        done = max(step / args.steps, (time.time() - start) / (60 * args.minutes))
        if done >= 1:
            print(f"time limit after {step} steps", flush=True)
            break
        batch = next(batches, None)
        if batch is None or len(batch) < args.batch:  # a new epoch, in a new order
            order.shuffle(encoded)
            batches = iter(pack(encoded, args.row_length).split(args.batch))
            batch = next(batches)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, done, args)
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 100 == 0:
            held_out = f"  held out {mean_loss(model, validation):.4f}" if (step + 1) % 1000 == 0 else ""
            seconds = time.time() - start
            print(f"step {step + 1}  loss {loss.item():.4f}{held_out}  {seconds:.0f} s", flush=True)


def save(model, tokenizer, out):
    """The Hugging Face folder. The tied lm_head is not stored twice."""
    out.mkdir(parents=True, exist_ok=True)
    weights = {k: v.contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)
    # One line: a third of the size of the indented form.
    (out / "tokenizer.json").write_text(tokenizer.to_str(pretty=False), encoding="utf-8")
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": IM_END,
        "pad_token": END,
        "unk_token": END,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONFIG["max_position_embeddings"],
        "chat_template": CHAT_TEMPLATE,
    }
    generation = {"eos_token_id": [2, 0], "pad_token_id": 0, "do_sample": False, "max_new_tokens": 80}
    for name, content in [
        ("config.json", CONFIG),
        ("tokenizer_config.json", tokenizer_config),
        ("generation_config.json", generation),
    ]:
        (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--source", type=Path, required=True, help="folder of the raw GO files")
    parser.add_argument("--leave-out", type=Path, help="CSV with a GO column: ids to use nowhere")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "base")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--minutes", type=float, default=20, help="time limit of the training")
    parser.add_argument("--batch", type=int, default=8, help="rows a step")
    parser.add_argument("--row-length", type=int, default=256, help="tokens a row")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16 while training")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    documents, held_out = read_documents(args.source, read_left_out(args.leave_out))
    tokenizer = train_tokenizer(documents)

    def encode(texts):
        return [e.ids + [0] for e in tokenizer.encode_batch(texts, add_special_tokens=False)]

    encoded, validation = encode(documents), pack(encode(held_out), args.row_length)
    characters = sum(len(text) for text in held_out) / sum(len(text) for text in encode(held_out))
    model = LlamaForCausalLM(LlamaConfig(**{**CONFIG, "torch_dtype": "float32"}))
    count = sum(p.numel() for p in model.parameters())
    print(f"{count} parameters, {sum(map(len, encoded))} training tokens, "
          f"{characters:.2f} characters a token", flush=True)
    train_model(model, encoded, validation, args)
    model.to(torch.bfloat16)
    save(model, tokenizer, args.out)
    loss = mean_loss(model.float(), validation)
    print(f"held out, weights in bfloat16: loss {loss:.4f}, perplexity {math.exp(loss):.2f}")


if __name__ == "__main__":
    main()
