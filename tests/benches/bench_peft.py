#!/usr/bin/env python3
"""Equipoise against PyTorch + PEFT on this machine: speed, memory, time to the first step. See README.md.

    python3 tests/benches/bench_peft.py            all configurations; hours on a small machine
    python3 tests/benches/bench_peft.py --quick    4x256 alone
    python3 tests/benches/bench_peft.py --sweep    Equipoise alone: how cost grows with work

Standard library only. What needs torch runs in a virtual environment, in peer_peft.py and gguf_to_hf.py.
"""

import argparse
import datetime
import json
import re
import shlex
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import measuring
import report
import setup_peer
from counting import Counts, StepWork, write_batches
from setup_peer import ROOT

COMPUTE_KEY = "compute"
"""The recipe's key for the type that is computed in."""

SHARED = ROOT / ".." / "shared"
WORK = ROOT / "target" / "bench-peft"
SEED = 42
RANK = 8
LEARNING_RATE = 2e-4
LOSS_TOLERANCE = 0.003
"""How far first-step losses may lie apart. Rounding to bf16 moves them by less than 0.001; one row whose tokens are
others moves them by more."""

DISTURBED = 0.05
"""The share of the machine's time that others may take before it is remarked on."""


@dataclass(frozen=True)
class Mode:
    """A way to train: whose, computed in what, and what that side calls it."""

    name: str
    side: str
    dtype: str
    """The type whose GEMM peak it is held against."""
    setting: str = ""
    objective: str = "sft"
    budget: int = 0
    """With recompute on: MiB that `gradient_checkpointing: auto` may fill, in place of `layer`."""


MODES = (
    Mode("equipoise-f32", "equipoise", "f32", "f32"),
    Mode("peer-f32", "peer", "f32", "f32"),
    Mode("equipoise-bf16", "equipoise", "bf16", "bf16"),
    Mode("peer-bf16", "peer", "bf16", "bf16"),
    Mode("equipoise-auto", "equipoise", "bf16", "bf16", budget=800),
    Mode("equipoise-bft", "equipoise", "bf16", "bf16", objective="bft"),
    Mode("peer-autocast", "peer", "bf16", "autocast"),
    Mode("peer-bf16-all", "peer", "bf16", "bf16-all"),
)
"""In the order in which a round runs them: the two sides alternately."""

LEFT_OUT = ("peer-bf16-all",)
"""Runs only where --modes names it: adapters in bf16 too, which nobody should train in."""

NO_KEY_MODES = (
    Mode("equipoise-default", "equipoise", "f32"),
    Mode("equipoise-bft", "equipoise", "f32", objective="bft"),
)
"""Equipoise's modes under --no-compute-key."""

DEFAULT_CONFIGS = "full:4x256,full:1x512,full:8x512,full:1x2048,masked:4x512"
QUICK_CONFIGS = "full:4x256"
SWEEP_LENGTHS = (256, 512, 1024, 2048, 4096)
SWEEP_BATCHES = (1, 2, 4, 8, 16, 32)
SWEEP_KINDS = ("full", "masked", "context")
SWEEP_ROWS = (1400, 14000)


@dataclass(frozen=True)
class Data:
    """A data set: its kind of rows, and the shape of a batch."""

    kind: str
    batch: int
    length: int
    rows: int

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.batch}x{self.length}-{self.rows}"


@dataclass
class Bench:
    """All that a run needs to know."""

    args: argparse.Namespace
    python: Path
    equipoise: Path
    peer_model: Path
    counts: Counts
    works: dict[str, list[StepWork]]

    def path(self, folder: str, name: str) -> Path:
        """A file of the benchmark's own."""
        (WORK / folder).mkdir(parents=True, exist_ok=True)
        return WORK / folder / name

    def modes(self) -> list[Mode]:
        """The modes that were asked for."""
        modes = MODES
        if self.args.no_compute_key:
            modes = NO_KEY_MODES + tuple(mode for mode in MODES if mode.side == "peer")
        if self.args.modes is None:
            return [mode for mode in modes if mode.name not in LEFT_OUT]
        unknown = set(self.args.modes) - {mode.name for mode in modes}
        if unknown:
            raise SystemExit(f"--modes: no mode {', '.join(sorted(unknown))}; there are {', '.join(m.name for m in modes)}")
        return [mode for mode in modes if mode.name in self.args.modes]

    def sweep_mode(self) -> Mode:
        """Equipoise's mode that the sweep measures: the last that trains under sft."""
        modes = NO_KEY_MODES if self.args.no_compute_key else MODES
        return [mode for mode in modes if mode.side == "equipoise" and mode.objective == "sft" and not mode.budget][-1]

    def train(self, mode: Mode, data: Data, recompute: bool) -> measuring.Run:
        """One run in a fresh process, checked for having done the steps that it should."""
        command = (self.equipoise_command if mode.side == "equipoise" else self.peer_command)(mode, data, recompute)
        measuring.wait_for_quiet(self.args.patience)
        log = self.path("log", f"{mode.name}-{data.name}-{'on' if recompute else 'off'}.log")
        result = measuring.train(command, self.args.threads, log)
        if data.name in self.works:
            check_steps(mode, result, self.works[data.name])
        return result

    def peer_command(self, mode: Mode, data: Data, recompute: bool) -> list[str]:
        options = {
            "model": self.peer_model,
            "batches": self.path("data", f"{data.name}.batches.jsonl"),
            "mode": mode.setting,
            "rank": RANK,
            "learning-rate": LEARNING_RATE,
            "threads": self.args.threads,
        }
        command = [str(self.python), str(setup_peer.HERE / "peer_peft.py"), "train"]
        command += [f"--{name}={value}" for name, value in options.items()]
        return command + ["--recompute"] * recompute

    def equipoise_command(self, mode: Mode, data: Data, recompute: bool) -> list[str]:
        settings: dict[str, Any] = {
            "objective.type": mode.objective,
            "data.train": self.path("data", f"{data.name}.jsonl"),
            "data.max_seq_len": data.length,
            "training.micro_batch_size": data.batch,
            "training.max_steps": self.args.steps,
            "training.gradient_checkpointing": "layer" if recompute else "none",
        }
        if mode.budget:
            settings["training.gradient_checkpointing"] = "auto"
            settings["training.max_memory_mb"] = mode.budget
        if mode.setting:
            settings[COMPUTE_KEY] = mode.setting
        command = [str(self.equipoise), "train", str(self.path("", "recipe.yaml")), "--json", "--offline", "--overwrite"]
        command += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        if setup_peer.takes_threads(self.equipoise):
            command.append(f"--threads={self.args.threads}")
        return command


def recipe(model: Path, output: Path) -> str:
    """What all of Equipoise's runs have in common. JSON strings are YAML strings."""
    return f"""base:
  model: {json.dumps(str(model))}
lora:
  r: {RANK}
  lora_alpha: {2 * RANK}
  lora_dropout: 0.0
  target_modules: all-linear
data:
  train: set-by-the-driver.jsonl
  format: completion
  overlong: truncate
training:
  gradient_accumulation_steps: 1
  learning_rate: {LEARNING_RATE}
  lr_scheduler: constant
  warmup_steps: 0
  weight_decay: 0.0
  max_grad_norm: 1.0
  seed: {SEED}
device: cpu
output_dir: {json.dumps(str(output))}
"""


def check_steps(mode: Mode, result: measuring.Run, works: list[StepWork]) -> None:
    """Both sides must train on the same rows at the same step: tokens and supervised tokens tell.

    # Raises
    Failed, where they differ.
    """
    told = [(step.tokens, step.supervised) for step in result.steps]
    wanted = [(work.tokens, work.supervised) for work in works]
    if told != wanted:
        raise measuring.Failed(f"{mode.name}: tokens and supervised tokens of the steps are {told}, should be {wanted}")


def prepare(bench: Bench, data: list[Data]) -> None:
    """Tokenizes once for both sides, and puts the rows into the order of the run."""
    spec = {
        "model": str(bench.peer_model),
        "medquad": str(bench.args.medquad),
        "folder": str(bench.path("data", "")),
        "rank": RANK,
        "data": {one.name: {"kind": one.kind, "length": one.length, "rows": one.rows} for one in data},
    }
    file = bench.path("data", "spec.json")
    file.write_text(json.dumps(spec))
    command = [str(bench.python), str(setup_peer.HERE / "peer_peft.py"), "prepare", str(file)]
    lines, _ = measuring.run(command, bench.args.threads, bench.path("log", "prepare.log"))
    told = next(line for _, line in lines if line["event"] == "counts")
    bench.counts = Counts(**{name: value for name, value in told.items() if name != "event"})
    for one in data:
        if one.rows == one.batch * bench.args.steps:
            stem = bench.path("data", one.name)
            bench.works[one.name] = write_batches(Path(f"{stem}.ids.jsonl"), Path(f"{stem}.batches.jsonl"), one.batch, SEED)


def gemm(bench: Bench) -> dict[str, float]:
    """The machine's best FLOP/s in matrix products, by type."""
    command = [str(bench.python), str(setup_peer.HERE / "peer_peft.py"), "gemm", f"--threads={bench.args.threads}"]
    measuring.wait_for_quiet(bench.args.patience)
    lines, _ = measuring.run(command, bench.args.threads, bench.path("log", "gemm.log"))
    best: dict[str, float] = {}
    for _, line in lines:
        name = line["dtype"]
        best[f"{name} {'x'.join(map(str, line['shape']))}"] = line["flops"]
        best[name] = max(best.get(name, 0.0), line["flops"])
    return best


def measure(bench: Bench, data: Data, recompute: bool, modes: list[Mode], rounds: int) -> dict[str, Any]:
    """All modes of one configuration, in turn, `rounds` times."""
    works = bench.works.get(data.name, [])
    result: dict[str, Any] = {
        **asdict(data),
        "recompute": recompute,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shown_command(),
        "load_before": measuring.load(),
        "gemm": gemm(bench),
        "flop": [work.flop(bench.counts) for work in works],
        "attention_flop": [work.attention_flop(bench.counts) for work in works],
        "modes": {},
    }
    for number in range(1, rounds + 1):
        for mode in modes:
            entry = result["modes"].setdefault(mode.name, {**asdict(mode), "runs": [], "failed": None})
            if entry["failed"]:
                continue
            try:
                one = bench.train(mode, data, recompute)
            except measuring.Failed as failed:
                entry["failed"] = str(failed)
                say(f"{mode.name} failed: {failed}")
                continue
            entry["runs"].append(one.as_json())
            rates = sorted(step.tokens / step.seconds for step in one.counted())
            middle = rates[len(rates) // 2] if rates else 0.0
            say(
                f"{data.kind} {data.batch}x{data.length} recompute {'on' if recompute else 'off'} "
                f"round {number}: {mode.name} {middle:.0f} tokens/s, {one.peak_rss / 2**30:.2f} GiB, "
                f"{one.before_steps:.1f} s before the first step, loss {one.steps[0].loss:.4f}, others' share {one.disturbed}"
            )
    result["remarks"] = remarks(result)
    return result


def remarks(result: dict[str, Any]) -> list[str]:
    """What a reader should know before believing the numbers."""
    found = [f"{name} failed" for name, mode in result["modes"].items() if mode["failed"]]
    losses = {name: mode["runs"][0]["steps"][0]["loss"] for name, mode in result["modes"].items() if mode["runs"]}
    reference = next((losses[name] for name in losses if name.startswith("peer")), None)
    for name, loss in losses.items():
        if reference and abs(loss / reference - 1) > LOSS_TOLERANCE:
            found.append(f"{name}: the first loss, {loss:.4f}, is not the peer's, {reference:.4f}")
    for name, mode in result["modes"].items():
        ratios = [run["clock_ratio"] for run in mode["runs"] if run["clock_ratio"]]
        disturbed = [run["disturbed"] for run in mode["runs"] if (run["disturbed"] or 0.0) > DISTURBED]
        if disturbed:
            found.append(
                f"{name}: others' programs took up to {max(disturbed):.0%} of the machine in {len(disturbed)} of "
                f"{len(mode['runs'])} runs; measure again when it is quiet"
            )
        if ratios and max(ratios) > 1.05:
            found.append(f"{name}: between its steps passes {max(ratios) - 1:.0%} more time than it tells")
    return found


def configurations(args: argparse.Namespace) -> list[Data]:
    """The configurations that were asked for."""
    found = []
    for text in (QUICK_CONFIGS if args.quick else args.configs).split(","):
        match = re.fullmatch(r"(?:(full|masked|context):)?(\d+)x(\d+)", text.strip())
        if not match:
            raise SystemExit(f"--configs: `{text}` is not KIND:BATCHxLENGTH, such as full:4x256 or masked:4x512")
        batch, length = int(match[2]), int(match[3])
        found.append(Data(match[1] or "full", batch, length, batch * args.steps))
    return found


def compare(bench: Bench) -> None:
    """Equipoise and the peer, configuration by configuration; results are written after each."""
    data = configurations(bench.args)
    prepare(bench, data)
    for one in data:
        for recompute in bench.args.recompute:
            key = f"{one.kind} {one.batch}x{one.length} recompute {'on' if recompute else 'off'}"
            # What a budget decides is recompute.
            modes = [mode for mode in bench.modes() if recompute or not mode.budget]
            save(bench, "peft", key, measure(bench, one, recompute, modes, bench.args.rounds))


def sweep(bench: Bench) -> None:
    """Equipoise alone: length, batch, how much is masked, and how many rows there are."""
    steps = bench.args.steps
    groups = {
        "length": [Data("full", 1, length, steps) for length in SWEEP_LENGTHS],
        "batch": [Data("full", batch, 256, batch * steps) for batch in SWEEP_BATCHES],
        "kind": [Data(kind, 4, 512, 4 * steps) for kind in SWEEP_KINDS],
        "rows": [Data("masked", 4, 256, rows) for rows in SWEEP_ROWS],
    }
    groups = {name: data for name, data in groups.items() if name in bench.args.sweep_groups}
    prepare(bench, list({one.name: one for data in groups.values() for one in data}.values()))
    for group, data in groups.items():
        for recompute in bench.args.recompute:
            for one in data:
                key = f"{group}: {one.name} recompute {'on' if recompute else 'off'}"
                result = measure(bench, one, recompute, [bench.sweep_mode()], bench.args.rounds)
                save(bench, "sweep", key, {"group": group, **result})


def save(bench: Bench, section: str, key: str, result: dict[str, Any]) -> None:
    """Writes the raw numbers and the tables made of them. Other configurations stay, if they are of this machine."""
    raw = bench.args.output.with_name("results.json")
    known = json.loads(raw.read_text()) if raw.exists() else {}
    here = {"machine": asdict(measuring.machine()), "threads": bench.args.threads, "model": bench.args.model.name}
    if known.get("here") != here:
        known = {"here": here}
    known["versions"] = {
        "equipoise": setup_peer.equipoise_version(bench.equipoise, bench.args.equipoise is None),
        **setup_peer.versions(bench.python),
    }
    known["counts"] = asdict(bench.counts)
    known["settings"] = {"steps": bench.args.steps, "rounds": bench.args.rounds, "rank": RANK}
    known.setdefault(section, {})[key] = {**result, "equipoise_version": known["versions"]["equipoise"]}
    replace(raw, json.dumps(known, indent=1) + "\n")
    replace(bench.args.output, report.document(known))
    print(report.section(section, key, known[section][key]), flush=True)


def replace(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    new.replace(path)


def shown_command() -> str:
    """The command line, without this machine's folders."""
    shown = [Path(part).name if "/" in part else part for part in sys.argv[1:]]
    return shlex.join(["python3", "tests/benches/bench_peft.py", *shown])


def say(text: str) -> None:
    """A line for people who wait."""
    print(text, file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    model = SHARED / "models" / "smollm2-135m-instruct-gguf" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quick", action="store_true", help=f"measure {QUICK_CONFIGS} alone")
    add("--sweep", action="store_true", help="measure Equipoise alone, over lengths, batches, masks and rows")
    add("--sweep-groups", type=words, default="length,batch,kind,rows", help="parts of the sweep (%(default)s)")
    add("--configs", default=DEFAULT_CONFIGS, help="KIND:BATCHxLENGTH, by commas (%(default)s)")
    add("--recompute", type=switches, default="off,on", help="off, on, or both by a comma (%(default)s)")
    add("--modes", type=words, help="by commas; all but " + ", ".join(LEFT_OUT))
    add("--rounds", type=int, default=3, help="times that each mode runs (%(default)s)")
    add("--steps", type=int, default=6, help="optimizer steps of a run, of which the first is not counted (%(default)s)")
    add("--threads", type=int, default=measuring.cores(), help="of both sides (%(default)s, all cores)")
    add("--patience", type=float, default=0, help="seconds to wait before a run for a quiet machine (%(default)s)")
    add("--model", type=Path, default=model, help="a GGUF file, which Equipoise trains on")
    add("--peer-model", type=Path, help="a Hugging Face folder of the same weights; else it is made from --model")
    add("--medquad", type=Path, default=SHARED / "data" / "medquad" / "train.jsonl", help="questions and answers")
    add("--equipoise", type=Path, help="a binary; else it is built from this checkout")
    add("--python", type=Path, help="of an environment with the peer; else one is made under target/bench-peft")
    add("--pip-args", type=shlex.split, default="", help='for pip: --pip-args="--index-url https://..."')
    add("--no-compute-key", action="store_true", help=f"for binaries without the recipe's {COMPUTE_KEY}")
    add("--output", type=Path, default=setup_peer.HERE / "RESULTS.md", help="the tables; results.json goes beside it")
    args = parser.parse_args()
    if args.steps < 2 or args.rounds < 1 or args.threads < 1:
        parser.error("at least 2 steps, 1 round and 1 thread are needed")
    for path in (args.model, args.medquad):
        if not path.is_file():
            parser.error(f"no such file: {path}")
    return args


def words(text: str) -> list[str]:
    """A list by commas."""
    return [word.strip() for word in text.split(",")]


def switches(text: str) -> list[bool]:
    """`off`, `on`, or both."""
    if not set(words(text)) <= {"off", "on"}:
        raise argparse.ArgumentTypeError(f"`{text}`: expected off, on, or off,on")
    return [word == "on" for word in words(text)]


def main() -> None:
    args = parse()
    WORK.mkdir(parents=True, exist_ok=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    python = args.python or setup_peer.python_of(WORK / "venv", args.pip_args)
    equipoise = (args.equipoise or setup_peer.build_equipoise()).absolute()
    model = args.peer_model or setup_peer.peer_model(python, args.model, WORK / "model" / args.model.stem)
    bench = Bench(args, python, equipoise, model, Counts(0, 0, 0, 0), {})
    output = bench.path("", "adapter")
    bench.path("", "recipe.yaml").write_text(recipe(args.model.absolute(), output))
    try:
        sweep(bench) if args.sweep else compare(bench)
    finally:
        shutil.rmtree(output, ignore_errors=True)
    say(f"written: {args.output}, {args.output.with_name('results.json')}")


if __name__ == "__main__":
    main()
