#!/usr/bin/env python3
"""Answering a task: Equipoise against lm-evaluation-harness with transformers, in turn, on the same machine.

    python3 tests/benches/bench_eval.py            the table, on stdout
    python3 tests/benches/bench_eval.py --write    also into EVAL.md

PubMedQA's yes, no or maybe about an abstract. Both sides have the same weights: Equipoise the GGUF file, the peer the file
dequantized. A run fails unless it answered all items; in f32 the two sides must have the same accuracy.
"""

import argparse
import datetime
import os
import shlex
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import measuring
import setup_peer

SHARED = setup_peer.ROOT.parent / "shared"
WORK = setup_peer.ROOT / "target" / "bench-eval"
PACKAGES = (*setup_peer.PACKAGES, "lm_eval==0.4.13")
TASK = """\
task: bench_pubmedqa
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Abstract: {{{{contexts | join('\\n')}}}}\\nQuestion: {{{{question}}}}\\nAnswer:"
doc_to_choice: ["yes", "no", "maybe"]
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""


@dataclass
class Side:
    """What one way of doing it showed, round by round."""

    rates: list[float] = field(default_factory=list)
    """Items a second, loading left out."""
    whole: list[float] = field(default_factory=list)
    """Seconds from the process's start to its end."""
    memory: list[int] = field(default_factory=list)
    accuracy: set[float] = field(default_factory=set)


def commands(args: argparse.Namespace, python: Path, equipoise: Path, model: Path, work: Path) -> dict[str, list[str]]:
    """The ways, ours and the peer's in turn."""
    (work / "tasks").mkdir()
    (work / "tasks" / "bench_pubmedqa.yaml").write_text(TASK.format(data=args.pubmedqa.absolute()))
    tasks, limit, threads = str(work / "tasks"), f"--limit={args.items}", f"--threads={args.threads}"
    ours = [str(equipoise), "eval", str(args.model.absolute()), "--tasks=bench_pubmedqa", f"--include-path={tasks}"]
    ours += [limit, threads, "--json", "--offline", "--device=cpu"]
    peer = [str(python), str(setup_peer.HERE / "peer_eval.py"), str(model), tasks, "bench_pubmedqa", limit, threads]
    ways = {}
    for mode, name in (("f32", "float32"), ("bf16", "bfloat16")):
        if mode in args.modes:
            ways[f"equipoise-{mode}"] = [*ours, f"--compute={mode}"]
            for size in args.batch_sizes:
                ways[f"peer-{mode}, batch {size}"] = [*peer, f"--dtype={name}", f"--batch-size={size}"]
    return ways


def one(command: list[str], args: argparse.Namespace, log: Path, side: Side) -> None:
    """Runs a process and notes what it found."""
    lines, run = measuring.run(command, args.threads, log)
    found = lines[-1][1]
    if found["items"] != args.items:
        raise SystemExit(f"{found['items']} items were answered, not {args.items}: {shlex.join(command)}")
    side.rates.append(found["items"] / found["seconds"])
    side.whole.append(run.wall)
    side.memory.append(run.peak_rss)
    side.accuracy.add(round(found["acc"] if "acc" in found else found["rows"][0]["value"], 6))
    if run.disturbed is not None and run.disturbed > 0.05:
        print(f"others took {run.disturbed:.0%} of the machine meanwhile", file=sys.stderr)


def measure(args: argparse.Namespace, python: Path, equipoise: Path, model: Path) -> dict[str, Side]:
    """All ways in turn, round by round."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_DATASETS_CACHE"] = str(Path(folder) / "cache")
        ways = commands(args, python, equipoise, model, Path(folder))
        sides = {name: Side() for name in ways}
        for number in range(args.rounds):
            for name, command in ways.items():
                measuring.wait_for_quiet(args.patience)
                one(command, args, Path(folder) / "log", sides[name])
                print(f"round {number + 1} of {args.rounds}: {name}: {sides[name].rates[-1]:.2f} items/s", file=sys.stderr)
    return sides


def table(sides: dict[str, Side], args: argparse.Namespace, python: Path) -> str:
    """The results as Markdown."""
    found = {name: side.accuracy for name, side in sides.items() if "f32" in name}
    if len(set().union(*found.values())) > 1:
        raise SystemExit(f"the sides do not agree in f32: {found}")
    machine = measuring.machine()
    versions = setup_peer.versions(python, ("lm_eval", "transformers", "torch"))
    lines = [
        "# Answering a task: Equipoise against lm-evaluation-harness",
        "",
        f"Written by `{shlex.join(['python3', 'tests/benches/bench_eval.py', *args.shown])}`.",
        "",
        f"- Machine: {machine.cpu}, {args.threads} of {machine.cores} cores, {machine.memory_gib} GiB; {machine.kernel}; "
        f"{machine.flags}",
        f"- Peer: {', '.join(f'{name} {version}' for name, version in versions.items())}",
        f"- Model: `{args.model.name}`; the peer has its dequantized weights",
        f"- {args.items} items of PubMedQA; {args.rounds} round{'s, medians' if args.rounds > 1 else ''}",
        f"- {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "",
        "| way | items/s (min–max) | whole process | peak RSS | accuracy |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, side in sides.items():
        rates, accuracy = side.rates, ", ".join(f"{value:.3f}" for value in sorted(side.accuracy))
        lines.append(
            f"| {name} | {statistics.median(rates):.2f} ({min(rates):.2f}–{max(rates):.2f}) "
            f"| {statistics.median(side.whole):.0f} s | {statistics.median(side.memory) / 2**20:.0f} MiB | {accuracy} |"
        )
    lines.append("")
    for mode in args.modes:
        rate = {name: statistics.median(side.rates) for name, side in sides.items() if mode in name.split(",")[0].split("-")}
        ours = rate.pop(f"equipoise-{mode}")
        best = max(rate, key=lambda name: rate[name])
        lines.append(f"In {mode}: **{ours / rate[best]:.2f}** times `{best}`.")
    return "\n".join([*lines, "", "Loading the model is in the whole process alone. The goal is 4 times the items a second.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--rounds", type=int, default=3)
    add("--items", type=int, default=500)
    add("--modes", type=lambda text: text.split(","), default=["f32", "bf16"], help="f32, bf16 or both")
    add("--batch-sizes", type=lambda text: [int(size) for size in text.split(",")], default=[1, 8], help="of the peer")
    add("--threads", type=int, default=measuring.cores())
    add("--patience", type=float, default=0, help="seconds to wait before a run for a quiet machine (%(default)s)")
    model = SHARED / "models" / "smollm2-135m-instruct-gguf" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    add("--model", type=Path, default=model, help="a GGUF file")
    add("--peer-model", type=Path, help="a Hugging Face folder with the same weights; else it is made from --model")
    add("--pubmedqa", type=Path, default=SHARED / "data" / "pubmedqa" / "train500.jsonl")
    add("--equipoise", type=Path, help="a binary; else it is built from this checkout")
    add("--python", type=Path, help="of an environment with the peer; else one is made under target/bench-eval")
    add("--pip-args", type=shlex.split, default="")
    add("--write", action="store_true", help="write EVAL.md beside this script")
    args = parser.parse_args()
    hidden = ("--equipoise", "--python", "--peer-model", "--pip-args")
    args.shown = [part for part in sys.argv[1:] if not part.startswith(hidden)]
    python = args.python or setup_peer.python_of(WORK / "venv", args.pip_args, PACKAGES)
    equipoise = (args.equipoise or setup_peer.build_equipoise()).absolute()
    model = args.peer_model or setup_peer.peer_model(python, args.model, WORK / "model" / args.model.stem)
    text = table(measure(args, python, equipoise, model), args, python)
    print(text)
    if args.write:
        (setup_peer.HERE / "EVAL.md").write_text(text)


if __name__ == "__main__":
    main()
