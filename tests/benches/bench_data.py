"""Rows to tokens and labels: Equipoise against `datasets` and transformers, on MedQuAD, in one run.

    python3 tests/benches/bench_data.py            the table, on stdout
    python3 tests/benches/bench_data.py --write    also into DATA.md

Both sides read the same file, write it through the same chat template and tokenizer, and tell what is learnt. A run fails
unless rows, tokens and learnt tokens are the same on both sides.
"""

import argparse
import datetime
import json
import shlex
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import measuring
import setup_peer

SHARED = setup_peer.ROOT.parent / "shared"
WORK = setup_peer.ROOT / "target" / "bench-peft"
PEERS = ("prefix", "mask", "batch")


@dataclass
class Side:
    """What one way of doing it showed, round by round."""

    seconds: list[float] = field(default_factory=list)
    """Reading and tokenizing, as the program told."""
    whole: list[float] = field(default_factory=list)
    """From the process's start to its end."""
    memory: list[int] = field(default_factory=list)
    counts: set[tuple[int, int, int]] = field(default_factory=set)


def one(command: list[str], threads: int, log: Path, side: Side, seconds) -> None:
    """Runs a process and notes what it told."""
    lines, run = measuring.run(command, threads, log)
    told = lines[-1][1]
    data = told.get("data", told)
    side.seconds.append(seconds(told))
    side.whole.append(run.wall)
    side.memory.append(run.peak_rss)
    side.counts.add((data["rows"], data["tokens"], data["supervised_tokens"]))
    if run.disturbed is not None and run.disturbed > 0.05:
        print(f"others took {run.disturbed:.0%} of the machine meanwhile", file=sys.stderr)


def measure(args: argparse.Namespace, python: Path, equipoise: Path, model: Path) -> dict[str, Side]:
    """All ways in turn, round by round."""
    sides = {name: Side() for name in ("equipoise", "equipoise, kept tokens", *PEERS)}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        log, cache, recipe = work / "log", work / "tokens", work / "recipe.yaml"
        recipe.write_text(
            f"base:\n  model: {args.model.absolute()}\n"
            f"data:\n  train: {args.medquad.absolute()}\n  format: question_answer\n  max_seq_len: 8192\n"
        )
        ours = [str(equipoise), "data", str(recipe), "--json", "--offline", "--show=0", f"--threads={args.threads}"]
        for number in range(args.rounds):
            measuring.wait_for_quiet(args.patience)
            one([*ours, "--set=data.cache=off"], args.threads, log, sides["equipoise"], lambda told: told["seconds"])
            if number == 0:
                measuring.run([*ours, f"--set=data.cache={cache}"], args.threads, log)
            kept = [*ours, f"--set=data.cache={cache}"]
            one(kept, args.threads, log, sides["equipoise, kept tokens"], lambda told: told["seconds"])
            for way in PEERS:
                peer = [str(python), str(setup_peer.HERE / "peer_data.py"), str(model), str(args.medquad.absolute())]
                peer += ["--way", way, "--processes", str(args.threads)]
                one(peer, args.threads, log, sides[way], lambda told: told["reading"] + told["tokenizing"])
            print(f"round {number + 1} of {args.rounds}", file=sys.stderr)
    return sides


def table(sides: dict[str, Side], args: argparse.Namespace, python: Path) -> str:
    """The results as Markdown."""
    counts = set().union(*(side.counts for side in sides.values()))
    if len(counts) != 1:
        told = {name: side.counts for name, side in sides.items()}
        raise SystemExit(f"the sides do not agree (rows, tokens, learnt): {told}")
    rows, tokens, learnt = counts.pop()
    rate = {name: rows / statistics.median(side.seconds) for name, side in sides.items()}
    best = max(PEERS, key=lambda name: rate[name])
    machine = measuring.machine()
    versions = setup_peer.versions(python, ("datasets", "transformers", "tokenizers"))
    peer = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines = [
        "# Rows to tokens: Equipoise against datasets and transformers",
        "",
        f"Written by `{shlex.join(['python3', 'tests/benches/bench_data.py', '--write'])}`; {args.rounds} rounds, medians.",
        "",
        f"- Machine: {machine.cpu}, {args.threads} of {machine.cores} cores, {machine.memory_gib} GiB; {machine.kernel}",
        f"- Peer: {peer}",
        f"- Data: MedQuAD, {rows} rows, {tokens} tokens, {learnt} of them learnt: the same on all sides",
        f"- {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "",
        "| way | rows/s (min–max) | reading and tokenizing | whole process | peak RSS |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, side in sides.items():
        low, high = rows / max(side.seconds), rows / min(side.seconds)
        lines.append(
            f"| {name if name not in PEERS else f'peer: {name}'} | {rate[name]:.0f} ({low:.0f}–{high:.0f}) "
            f"| {statistics.median(side.seconds):.2f} s | {statistics.median(side.whole):.2f} s "
            f"| {statistics.median(side.memory) / 2**20:.0f} MiB |"
        )
    ratio = rate["equipoise"] / rate[best]
    lines += [
        "",
        f"Against the peer's fastest way (`{best}`): **{ratio:.1f}** times the rows a second (goal: at least 5).",
        "",
        "`prefix`: conversation and prompt tokenized row by row, in as many processes as there are threads. `mask`: the",
        "conversation once, with `return_assistant_tokens_mask` and generation blocks, likewise. `batch`: as `prefix`, a",
        "thousand rows at a time, on the tokenizer's own threads. The peer's numbers leave out its imports and loading the",
        "tokenizer, ours loading the tokenizer; the whole process has them.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--rounds", type=int, default=3)
    add("--threads", type=int, default=measuring.cores())
    add("--patience", type=float, default=0, help="seconds to wait before a round for a quiet machine (%(default)s)")
    model = SHARED / "models" / "smollm2-135m-instruct-gguf" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    add("--model", type=Path, default=model, help="a GGUF file, whose tokenizer and template both sides use")
    add("--peer-model", type=Path, help="a Hugging Face folder with the same tokenizer; else it is made from --model")
    add("--medquad", type=Path, default=SHARED / "data" / "medquad" / "train.jsonl")
    add("--equipoise", type=Path, help="a binary; else it is built from this checkout")
    add("--python", type=Path, help="of an environment with the peer; else one is made under target/bench-peft")
    add("--pip-args", type=shlex.split, default="")
    add("--write", action="store_true", help="write DATA.md beside this script")
    args = parser.parse_args()
    python = args.python or setup_peer.python_of(WORK / "venv", args.pip_args)
    equipoise = (args.equipoise or setup_peer.build_equipoise()).absolute()
    model = args.peer_model or setup_peer.peer_model(python, args.model, WORK / "model" / args.model.stem)
    text = table(measure(args, python, equipoise, model), args, python)
    print(text)
    if args.write:
        (setup_peer.HERE / "DATA.md").write_text(text)


if __name__ == "__main__":
    main()
