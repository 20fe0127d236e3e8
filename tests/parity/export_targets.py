#!/usr/bin/env python3
"""What each real program computes from an export: the logits after a prompt, and 64 greedy tokens.

One export is one adapter on one base, written for several programs. Each program runs in its own
environment, so each call handles one target and writes one JSON. Then two JSONs are compared.

    # once: the prompts as token ids, through the base's chat template        (needs transformers)
    python export_targets.py --target prompts --base BASE --out OUT/prompts.json

    # one call a target; --prompts names the file above
    python export_targets.py --target TARGET --prompts OUT/prompts.json [inputs] --out OUT/NAME.json

      TARGET        inputs                                       program
      base          --base BASE                                  transformers, the bare base
      peft          --base BASE --artefact PEFT_FOLDER           transformers and peft, unmerged
      merged        --artefact HF_FOLDER                         transformers
      gguf          --artefact FILE.gguf                         llama.cpp, a whole model
      gguf-adapter  --gguf-base FILE.gguf --artefact LORA.gguf   llama.cpp, base and adapter
      mlx           --base BASE --artefact MLX_FOLDER            mlx-lm, on the CPU
      mlx-merged    --artefact HF_FOLDER                         mlx-lm, a whole model

    # any environment with numpy; the first file is the reference
    python export_targets.py --compare OUT/peft.json OUT/gguf.json
    python export_targets.py --compare OUT/peft.json OUT/gguf.json --min-greedy 64 --max-logit 1e-2

BASE is a Hugging Face folder. transformers and mlx-lm read weights as float32 and compute so.
llama.cpp computes with the types of its file; its key/value cache is float32 unless --kv f16.
Token ids go in and come out, so tokenizers play no part in the numbers. For GGUF files the
prompt's text is also tokenized by llama.cpp, and the ids are compared.

Versions: see README.md. CPU only.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

NEW_TOKENS = 64
RUNNERS_UP = 8
# What the examples train, what they do not, several lines, digits, and letters outside ASCII.
PROMPTS = [
    "Define the biological process term.\n\nmitotic spindle assembly",
    "Define the biological process term.\n\nnegative regulation of T cell activation",
    "Name the biological process that these genes share.\n\nMLH1, MSH2, MSH6, PMS2, EXO1",
    "What is the capital of France, and how many people live there?",
    "Explain β-oxidation in naïve cells – in 2 sentences, for a 12-year-old.",
    "List three prime numbers above 100.\nThen add them up.",
]


class Transformers:
    """A Hugging Face folder, with or without a PEFT adapter beside its weights, in float32."""

    def __init__(self, folder, adapter=None):
        import torch
        import transformers

        self.torch = torch
        self.versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        # The layers' own matrices: no fused attention, whose order of sums is another.
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )
        if adapter:
            import peft

            self.versions["peft"] = peft.__version__
            self.model = peft.PeftModel.from_pretrained(self.model, adapter)
            check_peft_loaded(self.model, adapter)
        self.model.eval()
        self.cache = None

    def start(self):
        self.cache = None

    def feed(self, ids):
        """Logits after the last of `ids`, which follow what was fed before."""
        with self.torch.no_grad():
            out = self.model(
                input_ids=self.torch.tensor([ids]), past_key_values=self.cache, use_cache=True
            )
        self.cache = out.past_key_values
        return out.logits[0, -1].float().numpy()


def check_peft_loaded(model, folder):
    """Every tensor of the file is in the model, bit for bit, and no B was left at zero. PEFT only warns of either."""
    from safetensors.torch import load_file

    held = {name.replace(".default.", "."): value for name, value in model.state_dict().items()}
    wrong = [
        name
        for name, value in load_file(Path(folder) / "adapter_model.safetensors").items()
        if name not in held or not held[name].equal(value.float())
    ]
    if wrong:
        sys.exit(f"{folder}: PEFT did not load {len(wrong)} tensors, the first is {wrong[0]}")
    zero = [name for name, value in held.items() if name.endswith("lora_B.weight") and not value.any()]
    if zero:
        sys.exit(f"{folder}: {len(zero)} lora_B are zero once loaded, the first is {zero[0]}")


class LlamaCpp:
    """A GGUF file in llama.cpp, with or without a GGUF adapter."""

    def __init__(self, model, adapter=None, kv="f32", threads=2):
        import llama_cpp

        self.lib = llama_cpp
        self.versions = {"llama-cpp-python": llama_cpp.__version__}
        kind = {"f32": llama_cpp.GGML_TYPE_F32, "f16": llama_cpp.GGML_TYPE_F16}[kv]
        self.llm = llama_cpp.Llama(
            model_path=str(model),
            lora_path=str(adapter) if adapter else None,
            n_ctx=1024,
            n_batch=1024,
            n_threads=threads,
            n_threads_batch=threads,
            n_gpu_layers=0,
            type_k=kind,
            type_v=kind,
            flash_attn=False,
            logits_all=True,
            verbose=False,
        )

    def start(self):
        self.llm.reset()

    def feed(self, ids):
        self.llm.eval(ids)
        logits = self.lib.llama_get_logits_ith(self.llm.ctx, -1)
        return np.ctypeslib.as_array(logits, shape=(self.llm.n_vocab(),)).astype(np.float32)

    def tokenize(self, text):
        return self.llm.tokenize(text.encode(), add_bos=False, special=True)


class Mlx:
    """A Hugging Face folder in mlx-lm, with or without an mlx-lm adapter, in float32 on the CPU."""

    def __init__(self, folder, adapter=None):
        import mlx.core as mx
        import mlx_lm
        from mlx.utils import tree_flatten, tree_map
        from mlx_lm.models.cache import make_prompt_cache

        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        if "rope_parameters" in config and "rope_theta" not in config:
            print(f"{folder}: config.json has no `rope_theta` beside `rope_parameters`; mlx-lm's Llama will take 10000")
        mx.set_default_device(mx.cpu)
        self.mx, self.make_cache = mx, make_prompt_cache
        self.versions = {"mlx": mx.__version__, "mlx-lm": mlx_lm.__version__}
        self.model, _ = mlx_lm.load(str(folder), adapter_path=str(adapter) if adapter else None)
        self.model.update(tree_map(lambda value: value.astype(mx.float32), self.model.parameters()))
        if adapter:
            # mlx-lm leaves a layer that the file does not name at its start, with B at zero.
            zero = [
                name
                for name, value in tree_flatten(self.model.parameters())
                if name.endswith("lora_b") and not mx.any(value != 0).item()
            ]
            if zero:
                sys.exit(f"{adapter}: {len(zero)} lora_b are zero once loaded, the first is {zero[0]}")
        self.cache = None

    def start(self):
        self.cache = self.make_cache(self.model)

    def feed(self, ids):
        logits = self.model(self.mx.array([ids]), cache=self.cache)[0, -1]
        return np.array(logits.astype(self.mx.float32))


def open_target(args):
    def need(name):
        value = getattr(args, name)
        if value is None:
            sys.exit(f"--target {args.target} needs --{name.replace('_', '-')}")
        if not value.exists():
            sys.exit(f"--{name.replace('_', '-')}: there is no {value}")
        return value

    match args.target:
        case "base":
            return Transformers(need("base"))
        case "peft":
            return Transformers(need("base"), need("artefact"))
        case "merged":
            return Transformers(need("artefact"))
        case "gguf":
            return LlamaCpp(need("artefact"), kv=args.kv, threads=args.threads)
        case "gguf-adapter":
            return LlamaCpp(need("gguf_base"), need("artefact"), kv=args.kv, threads=args.threads)
        case "mlx":
            return Mlx(need("base"), need("artefact"))
        case "mlx-merged":
            return Mlx(need("artefact"))


def top(logits):
    """The best few of a position: token ids and their logits, best first."""
    best = np.argsort(-logits, kind="stable")[:RUNNERS_UP]
    return {"ids": best.tolist(), "logits": [round(float(logits[i]), 6) for i in best]}


def answer(program, prompt):
    """`last_logits` after the prompt, and the greedy continuation; an end-of-turn token does not stop it."""
    program.start()
    logits = program.feed(prompt["input_ids"])
    if not np.isfinite(logits).all():
        sys.exit(f"logits that are not finite after {prompt['text']!r}")
    entry = {"last_logits": [round(float(value), 6) for value in logits], "greedy": [], "top": []}
    for _ in range(NEW_TOKENS):
        entry["top"].append(top(logits))
        token = entry["top"][-1]["ids"][0]
        entry["greedy"].append(token)
        logits = program.feed([token])
    return entry


def run(args):
    prompts = json.loads(args.prompts.read_text(encoding="utf-8"))["prompts"]
    program = open_target(args)
    entries = []
    for prompt in prompts:
        entry = {"input_ids": prompt["input_ids"], **answer(program, prompt)}
        if hasattr(program, "tokenize"):
            entry["own_ids"] = program.tokenize(prompt["text"])
            same = entry["own_ids"] == prompt["input_ids"]
            print(f"tokenized by llama.cpp itself: {'the same' if same else 'OTHERWISE'}, {len(entry['own_ids'])} tokens")
        entries.append(entry)
    write(args.out, {"target": args.target, "versions": program.versions, "kv": args.kv}, entries)


def write_prompts(args):
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(args.base)
    entries = []
    for content in PROMPTS:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        entries.append({"text": text, "input_ids": tokenizer(text, add_special_tokens=False)["input_ids"]})
    write(args.out, {"target": "prompts", "versions": {"transformers": transformers.__version__}}, entries)


def write(path, head, prompts):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**head, "prompts": prompts}, ensure_ascii=False), encoding="utf-8")
    print(f"{path}: {head['target']}, {len(prompts)} prompts, {head['versions']}")


def log_softmax(logits):
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def compare_logits(a, b):
    a, b = (np.asarray(e["last_logits"], dtype=np.float64) for e in (a, b))
    if a.shape != b.shape:
        sys.exit(f"vocabularies differ: {a.size} and {b.size} logits")
    delta = np.abs(a - b)
    p, q = log_softmax(a), log_softmax(b)
    return {
        "max": delta.max(),
        "mean": delta.mean(),
        # A shift of all logits alike changes no probability; some programs have one.
        "centred": np.abs((a - a.mean()) - (b - b.mean())).max(),
        "kl": float((np.exp(p) * (p - q)).sum()),
        "top1": int(a.argmax()) == int(b.argmax()),
        "corr": float(np.corrcoef(a, b)[0, 1]),
    }


def lead(position, over):
    """By how much a position's best token leads token `over`; None if that is not among the best few."""
    if over not in position["ids"]:
        return None
    return position["logits"][0] - position["logits"][position["ids"].index(over)]


def compare_greedy(a, b):
    """How many tokens are equal; where they part, the lead of each one's choice over the other's."""
    for step, (x, y) in enumerate(zip(a["greedy"], b["greedy"], strict=True)):
        if x != y:
            return step, lead(a["top"][step], y), lead(b["top"][step], x)
    return len(a["greedy"]), None, None


def compare(args):
    a, b = (json.loads(path.read_text(encoding="utf-8")) for path in args.compare)
    print(f"reference {args.compare[0].name} ({a['target']}), against {args.compare[1].name} ({b['target']})")
    rows, failed = [], []
    for n, (x, y) in enumerate(zip(a["prompts"], b["prompts"], strict=True)):
        if x["input_ids"] != y["input_ids"]:
            sys.exit(f"prompt {n}: not the same tokens; write both from one prompts file")
        logits, (equal, lead_a, lead_b) = compare_logits(x, y), compare_greedy(x, y)
        rows.append((logits, equal))
        line = (
            f"  prompt {n}: |d| max {logits['max']:.2e} mean {logits['mean']:.2e} KL {logits['kl']:.2e} "
            f"top-1 {'same' if logits['top1'] else 'OTHER'}, greedy {equal}/{len(x['greedy'])}"
        )
        if equal < len(x["greedy"]):
            say = ["more than the rest" if gap is None else f"{gap:.4f}" for gap in (lead_a, lead_b)]
            line += f", parted with a lead of {say[0]} there and {say[1]} here"
        print(line)
        if logits["max"] > args.max_logit:
            failed.append(f"prompt {n}: logits differ by {logits['max']:.3e}, more than {args.max_logit:g}")
        if equal < args.min_greedy:
            failed.append(f"prompt {n}: {equal} greedy tokens equal, fewer than {args.min_greedy}")
    print(
        f"  in all: |d| max {max(r['max'] for r, _ in rows):.2e}, mean {np.mean([r['mean'] for r, _ in rows]):.2e}, "
        f"centred max {max(r['centred'] for r, _ in rows):.2e}, KL mean {np.mean([r['kl'] for r, _ in rows]):.2e} "
        f"max {max(r['kl'] for r, _ in rows):.2e}, correlation {min(r['corr'] for r, _ in rows):.6f}, "
        f"top-1 {sum(r['top1'] for r, _ in rows)}/{len(rows)}, "
        f"greedy tokens equal {sum(e for _, e in rows)}/{sum(len(x['greedy']) for x in a['prompts'])}, "
        f"prompts equal throughout {sum(e == NEW_TOKENS for _, e in rows)}/{len(rows)}"
    )
    if failed:
        sys.exit("\n".join(failed))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    targets = ["prompts", "base", "peft", "merged", "gguf", "gguf-adapter", "mlx", "mlx-merged"]
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--target", choices=targets)
    what.add_argument("--compare", nargs=2, type=Path, metavar=("REFERENCE", "OTHER"))
    parser.add_argument("--base", type=Path, help="Hugging Face folder of the base")
    parser.add_argument("--gguf-base", type=Path, help="GGUF file of the base")
    parser.add_argument("--artefact", type=Path, help="the exported folder or file")
    parser.add_argument("--prompts", type=Path, help="what --target prompts wrote")
    parser.add_argument("--out", type=Path, help="the JSON to write")
    parser.add_argument("--kv", choices=["f32", "f16"], default="f32", help="llama.cpp's key/value cache")
    parser.add_argument("--threads", type=int, default=2, help="llama.cpp's threads")
    parser.add_argument("--min-greedy", type=int, default=0, help="fail where fewer greedy tokens are equal")
    parser.add_argument("--max-logit", type=float, default=float("inf"), help="fail where logits differ by more")
    args = parser.parse_args()

    if args.compare:
        return compare(args)
    if args.out is None:
        parser.error("--target needs --out")
    if args.target == "prompts":
        if args.base is None:
            parser.error("--target prompts needs --base")
        return write_prompts(args)
    if args.prompts is None:
        parser.error("--target needs --prompts")
    return run(args)


if __name__ == "__main__":
    main()
