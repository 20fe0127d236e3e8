#!/usr/bin/env python3
"""Hold Equipoise against transformers, PEFT and llama.cpp on real quantized weights.

    python tests/parity/real_models.py MODEL.gguf [...] --equipoise target/release/equipoise --work FOLDER

For each GGUF file, Equipoise in f32 on the CPU, from the same weights as its peers:

1. Ten LoRA steps of sft and of bft, against transformers and PEFT in float32 on the file's dequantized weights. Both begin
   with the adapter that `training.max_steps=0` writes, and see the same rows in the same order. The rows are tokenized by
   llama.cpp, and tokens and supervised tokens of each step must be those that Equipoise counts. Losses and gradient norms must
   agree to 1e-3 of their value: float32 alone gives some 1e-5. How far the matrices B are apart is reported and not judged, for
   Adam makes a whole step of the sign of a gradient that is nearly zero.
2. The base, 64 greedy tokens and the distribution of the next token after three prompts, against transformers and llama.cpp.
3. An adapter far from zero (sft at 2e-3), exported to all that these programs read, against them in the same way.

Distributions are compared on the 16 likeliest tokens and all others as one. `generate` prints no logits; but a row of a prompt
and one token, cut behind it, has the token's -log p as its loss. So Equipoise is trained on 16 such rows at a rate of 1e-30,
which changes nothing. The KL divergence of such a coarser distribution is at most that of the whole.

Bounds. Where the peer computes in float32 on the same weights: a KL of 1e-5, and texts may part only where the peer's choice
leads Equipoise's by 0.01 in logits. Both are far above what float32 rounds (some 1e-5 in log p), and far below any fault in
weights or order. llama.cpp alone has a coarser step there: its GELU is a table in float16, which moves Gemma by 4e-3 in log p.

llama.cpp rounds activations to 8 bits in products with quantized matrices. How far that moves it differs by model and file, so
the measure there is llama.cpp itself: the same program on the same weights in float32 (`own rounding`). Small KL divergences add
up as squares of distances do, so by the triangle inequality the root of the KL may be the root of llama.cpp's own and the root of
1e-5 together; and texts may part no earlier than llama.cpp's two do.

Tables are printed for each model. The exit code is 1 where a bound is broken. CPU only. Bases in float32, exports and merged
files take some 12 GiB of disk for a model of 0.6 billion weights. Versions: see README.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import numpy as np  # noqa: E402
import real_models_peer as peers  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from export_targets import LlamaCpp, Transformers, answer, log_softmax  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benches"))
from counting import StepWork, epoch_order, write_batches  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
STEPS, BATCH, LENGTH, SEED, NEW_TOKENS, LIKELIEST = 10, 2, 128, 42, 64, 16
RATE, LARGE_RATE, NO_RATE = 2e-4, 2e-3, 1e-30
LOSS_BOUND = 1e-3
OBJECTIVES = {
    "sft": {"type": "sft"},
    "bft": {"type": "bft", **{key: peers.OBJECTIVE[key] for key in ("group_size", "gamma")}},
}
PROMPTS = [
    "Define the biological process term.\n\nmitotic spindle assembly\n",
    "What is the capital of France, and how many people live there?",
    "def fibonacci(n",
]


KL_BOUND, LEAD_BOUND = 1e-5, 0.01
"""For a peer in float32: the most that a distribution after a prompt may be apart, and the most of a lead where two texts part."""


@dataclass(frozen=True)
class Peer:
    """A program on some form of the model, opened when it is asked."""

    name: str
    open: Callable[[], Any]
    twin: str = ""
    """For a program that rounds: the peer that is the same on the same weights in float32."""


@dataclass(frozen=True)
class Equipoise:
    """The binary, on one GGUF file."""

    program: Path
    gguf: Path
    work: Path
    threads: int

    def run(self, *arguments: str | Path) -> list[dict[str, Any]]:
        """The JSON lines that a command prints."""
        command = [str(one) for one in (self.program, *arguments, "--json", "--offline", "--threads", self.threads)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr}")
        return [json.loads(line) for line in done.stdout.splitlines()]

    def train(self, name: str, rows: Path, sections: dict[str, dict[str, Any]]) -> tuple[Path, list[dict[str, Any]]]:
        """The folder of a run, and its steps. `sections` override the recipe's keys. JSON is YAML."""
        recipe = {
            "base": {"model": str(self.gguf)},
            "compute": "f32",
            "device": "cpu",
            "lora": {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": "all-linear"},
            "objective": OBJECTIVES["sft"],
            "data": {"train": str(rows), "format": "completion", "max_seq_len": LENGTH, "overlong": "truncate"},
            "training": {
                "max_steps": STEPS, "micro_batch_size": BATCH, "gradient_accumulation_steps": 1, "learning_rate": RATE,
                "lr_scheduler": "constant", "warmup_steps": 0, "weight_decay": 0.0, "max_grad_norm": 1.0, "seed": SEED,
            },
            "output_dir": str(self.work / name),
        }
        for section, keys in sections.items():
            recipe[section] = {**recipe[section], **keys}
        path = self.work / f"{name}.yaml"
        path.write_text(json.dumps(recipe))
        lines = self.run("train", path, "--overwrite")
        return self.work / name, [line for line in lines if line["event"] == "step"]

    def generate(self, adapter: Path, prompt: str, base_only: bool) -> dict[str, Any]:
        """64 greedy tokens."""
        options = ["--base-only"] if base_only else []
        return self.run("generate", adapter, prompt, "--raw", "--max-tokens", str(NEW_TOKENS), *options)[-1]

    def log_probabilities(self, adapter: Path, prompt: str, tokens: list[str], length: int) -> list[float]:
        """log p of each token after a prompt of `length` tokens: the losses of rows that end there."""
        rows = self.work / "likeliest.jsonl"
        rows.write_text("".join(json.dumps({"prompt": prompt, "completion": token}) + "\n" for token in tokens))
        sections = {
            "lora": {"init_from": str(adapter)},
            "data": {"max_seq_len": length + 1},
            "training": {"max_steps": len(tokens), "micro_batch_size": 1, "learning_rate": NO_RATE},
        }
        _, steps = self.train("likeliest", rows, sections)
        assert all((step["tokens"], step["supervised_tokens"]) == (length + 1, 1) for step in steps), steps
        log_p = [0.0] * len(tokens)
        for place, step in zip(epoch_order(len(tokens), SEED), steps, strict=True):
            log_p[place] = -step["cross_entropy"]
        return log_p


def prepare_rows(source: Path, vocabulary: peers.Vocabulary, work: Path) -> tuple[Path, Path, list[StepWork]]:
    """The first rows that keep something to learn: as text for Equipoise, and as the batches of its first epoch."""
    text, ids, steps = work / "rows.jsonl", work / "rows.ids.jsonl", work / "batches.jsonl"
    kept = 0
    with source.open(encoding="utf-8") as lines, text.open("w") as texts, ids.open("w") as tokens:
        for line in lines:
            row = json.loads(line)
            if "instruction" in row:
                parts = [row["instruction"], row.get("input")]
                row = {"prompt": "\n\n".join(filter(None, parts)) + "\n", "completion": row["output"]}
            tokenized = vocabulary.row(row["prompt"], row["completion"], LENGTH)
            if kept < STEPS * BATCH and len(tokenized["ids"]) > tokenized["given"]:
                texts.write(json.dumps({key: row[key] for key in ("prompt", "completion")}) + "\n")
                tokens.write(json.dumps(tokenized) + "\n")
                kept += 1
    if kept < STEPS * BATCH:
        sys.exit(f"{source}: {kept} rows with something to learn in {LENGTH} tokens, {STEPS * BATCH} are needed")
    return text, steps, write_batches(ids, steps, BATCH, SEED)


def apart(ours: float, theirs: float) -> float:
    """The difference, as a share of the peer's value."""
    return abs(ours - theirs) / abs(theirs)


def compare_steps(ours: Equipoise, base: Path, start: Path, rows: tuple[Path, Path, list[StepWork]]) -> list[str]:
    """The table of the ten steps; what breaks a bound."""
    text, batches, works = rows
    failed = []
    print("| ten steps | loss differs by | cross-entropy by | gradient norm by | B by, median and most |")
    print("| --- | --- | --- | --- | --- |")
    for name, objective in OBJECTIVES.items():
        folder, mine = ours.train(name, text, {"objective": objective})
        counted = [(step["tokens"], step["supervised_tokens"]) for step in mine]
        if counted != [(work.tokens, work.supervised) for work in works]:
            sys.exit(f"{name}: tokens and supervised tokens of the steps are {counted}, should be {works}")
        theirs, adapter = peers.lora_steps(base, start, batches, name, RATE)
        keys = ("objective_loss", "cross_entropy", "grad_norm")
        most = {key: max(apart(a[key], getattr(b, key)) for a, b in zip(mine, theirs, strict=True)) for key in keys}
        trained = load_file(folder / "adapter_model.safetensors")
        differences = [
            ((trained[key] - value).norm() / value.norm()).item() for key, value in adapter.items() if "lora_B" in key
        ]
        shown = " | ".join(f"{most[key]:.1e}" for key in keys)
        print(f"| {name} | {shown} | {statistics.median(differences):.1e}, {max(differences):.1e} |", flush=True)
        failed += [f"{name}: {key} differs by {value:.1e}" for key, value in most.items() if not value <= LOSS_BOUND]
    return failed


def likeliest(vocabulary: peers.Vocabulary, logits: list[float]) -> tuple[list[int], list[str]]:
    """The likeliest tokens, each with a text that begins with it and is not blank, for blank rows are left out."""
    found: dict[int, str] = {}
    for token in np.argsort(-np.asarray(logits), kind="stable").tolist():
        piece = vocabulary.piece(token).decode(errors="replace")
        texts = [text for text in (piece, piece + "x") if text.strip() and vocabulary.ids(text)[:1] == [token]]
        if piece and texts:
            found[token] = texts[0]
        if len(found) == LIKELIEST:
            break
    return list(found), list(found.values())


def divergence(ours: Sequence[float], logits: list[float], ids: list[int]) -> tuple[float, float]:
    """KL of the peer's distribution to ours over `ids` and all others as one; the most that a log p differs by."""
    p, q = np.asarray(ours), log_softmax(np.asarray(logits, dtype=np.float64))[ids]
    others_p, others_q = (max(1.0 - np.exp(one).sum(), 1e-12) for one in (p, q))
    kl = (np.exp(p) * (p - q)).sum() + others_p * np.log(others_p / others_q)
    return max(float(kl), 0.0), float(np.abs(p - q).max())


def parting(vocabulary: peers.Vocabulary, ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[int, float | None]:
    """How many of the peer's greedy tokens our text is made of; where they part, by how much its choice leads ours.

    A choice that is not among the peer's eight best is infinitely far. A token cut in its bytes at the end counts as equal.
    """
    rest = ours["text"].rstrip("\ufffd").encode()
    for place, top in enumerate(theirs["top"]):
        pieces = [vocabulary.piece(token) for token in top["ids"]]
        if not rest and (not ours["finished_by_eos"] or not pieces[0]):
            return NEW_TOKENS, None
        if rest and pieces[0] and rest.startswith(pieces[0]):
            rest = rest[len(pieces[0]) :]
            continue
        chosen = (i for i, piece in enumerate(pieces) if (rest.startswith(piece) and piece if rest else not piece))
        return place, next((top["logits"][0] - top["logits"][i] for i in chosen), float("inf"))
    return NEW_TOKENS, None


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens at the beginning are the same."""
    return next((place for place, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))


def listed(values: Iterable[str]) -> str:
    return ", ".join(values)


def compare_texts(ours: Equipoise, adapter: Path, base_only: bool, vocabulary: peers.Vocabulary, asked: list[Peer]) -> list[str]:
    """The table rows of each peer, the first of which says the tokens to compare; what breaks a bound."""
    failed, mine, all_said = [], [], {}
    for peer in asked:
        program = peer.open()
        said = [answer(program, {"input_ids": vocabulary.ids(prompt, begins=True)}) for prompt in PROMPTS]
        all_said[peer.name] = said
        del program
        if not mine:
            for prompt, one in zip(PROMPTS, said, strict=True):
                ids, texts = likeliest(vocabulary, one["last_logits"])
                log_p = ours.log_probabilities(adapter, prompt, texts, len(vocabulary.ids(prompt, begins=True)))
                mine.append((ids, log_p, ours.generate(adapter, prompt, base_only)))
        apart = [divergence(log_p, one["last_logits"], ids) for (ids, log_p, _), one in zip(mine, said, strict=True)]
        parted = [parting(vocabulary, text, one) for (_, _, text), one in zip(mine, said, strict=True)]
        kl, log_p = (max(one) for one in zip(*apart, strict=True))
        counts, leads = zip(*parted, strict=True)
        bound, own = KL_BOUND, "-"
        if peer.twin:
            twins = all_said[peer.twin]
            rounding = max(
                divergence(log_softmax(np.asarray(twin["last_logits"]))[ids], one["last_logits"], ids)[0]
                for (ids, _, _), twin, one in zip(mine, twins, said, strict=True)
            )
            kept = [common(twin["greedy"], one["greedy"]) for twin, one in zip(twins, said, strict=True)]
            bound = (rounding**0.5 + KL_BOUND**0.5) ** 2
            own = f"{listed(map(str, kept))}; {rounding:.1e}"
            early = [f"{count} tokens, llama.cpp's own {its}" for count, its in zip(counts, kept, strict=True) if count < its]
        else:
            early = [f"a lead of {lead:.3f}" for lead in leads if lead is not None and not lead <= LEAD_BOUND]
        shown = listed("-" if lead is None else f"{lead:.3f}" for lead in leads)
        print(f"| {peer.name} | {listed(map(str, counts))} | {shown} | {log_p:.1e} | {kl:.1e} | {own} | {bound:.1e} |", flush=True)
        if not kl <= bound:
            failed.append(f"{peer.name}: a KL of {kl:.1e}, more than {bound:.1e}")
        failed += [f"{peer.name}: parted at {one}" for one in early]
    masses = listed(f"{np.exp(log_p).sum():.0%}" for _, log_p, _ in mine)
    print(f"of {asked[0].name}: the {LIKELIEST} tokens have {masses} of the probability", file=sys.stderr, flush=True)
    return failed


def one_model(ours: Equipoise, source: Path) -> list[str]:
    """Everything about one file; what breaks a bound."""
    work, threads = ours.work, ours.threads
    vocabulary = peers.Vocabulary(ours.gguf)
    base = peers.dequantized_folder(ours.gguf, work / "base")
    base_gguf = peers.dequantized_gguf(ours.gguf, work / "base-f32.gguf")
    rows = prepare_rows(source, vocabulary, work)
    start, _ = ours.train("start", rows[0], {"training": {"max_steps": 0}})

    print(f"\n### {ours.gguf.name}\n", flush=True)
    failed = compare_steps(ours, base, start, rows)

    far, _ = ours.train("far", rows[0], {"training": {"learning_rate": LARGE_RATE}})
    exports, exact = work / "exports", work / "exports-f32"
    targets = "peft,merged,gguf,gguf-adapter"
    ours.run("export", far, "--to", targets, "--dtype", "f32", "--out", exports, "--overwrite", "-q")
    ours.run("export", far, "--to", "gguf", "--quantize", "f32", "--out", exact, "--overwrite", "-q")
    (merged,), (lora,), (whole,) = (
        list(folder.glob("*.gguf")) for folder in (exports / "gguf", exports / "gguf-adapter", exact)
    )
    (work / "merged-f32.gguf").unlink(missing_ok=True)
    whole = peers.dequantized_gguf(whole, work / "merged-f32.gguf")

    print("\n| read by | greedy tokens equal, of 64 | lead where they part | log p differs by | KL | own rounding: tokens, KL | bound |")
    print("| --- | --- | --- | --- | --- | --- | --- |")

    def float32(name: str, folder: Path, adapter: Path | None = None) -> Peer:
        return Peer(name, lambda: Transformers(folder, adapter))

    def llama(name: str, file: Path, adapter: Path | None = None, twin: str = "") -> Peer:
        return Peer(name, lambda: LlamaCpp(file, adapter, threads=threads), twin)

    in_float32 = "base in float32, llama.cpp", "`gguf` in f32, llama.cpp", "`gguf-adapter` on the base in float32, llama.cpp"
    failed += compare_texts(ours, start, True, vocabulary, [
        float32("base in float32, transformers", base),
        llama(in_float32[0], base_gguf),
        llama("base, llama.cpp", ours.gguf, twin=in_float32[0]),
    ])
    failed += compare_texts(ours, far, False, vocabulary, [
        float32("`peft`, PEFT", base, exports / "peft"),
        float32("`merged`, transformers", exports / "merged"),
        llama(in_float32[1], whole),
        llama("`gguf` in q8_0, llama.cpp", merged, twin=in_float32[1]),
        llama(in_float32[2], base_gguf, lora),
        llama("`gguf-adapter` on the base, llama.cpp", ours.gguf, lora, twin=in_float32[2]),
    ])
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path, nargs="+", help="a GGUF file of a base model")
    parser.add_argument("--equipoise", type=Path, default=ROOT / "target/release/equipoise", help="the binary")
    parser.add_argument("--rows", type=Path, default=ROOT / "examples/gene_ontology/train.jsonl",
                        help="JSON Lines of instruction, input, output or of prompt, completion (%(default)s)")
    parser.add_argument("--work", type=Path, required=True, help="a folder for what is made; bases in it are used again")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    failed = []
    for file in args.gguf:
        work = args.work.resolve() / file.stem
        work.mkdir(parents=True, exist_ok=True)
        ours = Equipoise(args.equipoise.resolve(), file.resolve(), work, args.threads)
        failed += [f"{file.name}: {one}" for one in one_model(ours, args.rows)]
    if failed:
        sys.exit("\nbeyond the bounds:\n" + "\n".join(failed))
    print("\nall within the bounds")


if __name__ == "__main__":
    main()
