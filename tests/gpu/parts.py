#!/usr/bin/env python3
"""All that needs the GPU, part by part, each in its own time. run.sh starts it; README.md says what comes out.

Only the standard library is needed here; the peer, a process of its own, needs torch and what stands in PEER_NEEDS.
"""

import argparse
import datetime
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import machine
import reading
import report

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PARTS = ("check", "bench", "peer", "train")
LIMITS = {"check": 110.0, "bench": 170.0, "peer": 150.0, "train": 160.0}
"""Seconds that a part may take at most; what is left of the whole call's time limits it too."""
BENCH_LIMIT = 45.0
"""Seconds of one measurement."""
SHAPES = ((2, 2048), (1, 4096), (1, 8192))
QUANTIZATIONS = ("q4_k", "q8_0")
RANK = 16
MODEL = "smollm2-135m-instruct-gguf/SmolLM2-135M-Instruct.Q4_1.gguf"
PEER_NEEDS = ("torch", "transformers", "peft", "bitsandbytes")


class Call:
    """One call of this script: its arguments, its clock, and what it has found so far."""

    def __init__(self, args: argparse.Namespace, log: TextIO, work: Path) -> None:
        self.args, self.log, self.work = args, log, work
        self.gpu, self.end = machine.Gpu(), time.monotonic() + args.limit
        self.date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        self.results = self.begin()

    def begin(self) -> dict[str, Any]:
        """The head of the results. Parts of an earlier call on the same GPU stay, each with its own date."""
        head = {"sample": self.args.dry_run, "machine": machine.about(self.gpu), "parts": {}}
        path = self.args.out / "results.json"
        if path.exists() and not self.args.dry_run:
            known = json.loads(path.read_text())
            if known["machine"] == head["machine"]:
                head["parts"] = known["parts"]
            else:
                print(f"{path} is of another machine, and is replaced", flush=True)
        return head

    def start(self, part: str) -> dict[str, Any]:
        """A new part among the results."""
        found = {"date": self.date, "command": self.args.said, "version": self.args.version, "remarks": []}
        self.results["parts"][part] = found
        return found

    def left(self, limit: float, part_end: float = float("inf")) -> float:
        """Seconds for a process: its own limit, its part's end, the call's end."""
        now = time.monotonic()
        return max(0.0, min(limit, part_end - now, self.end - now))

    def run(self, command: list[str | Path], limit: float, environment: dict[str, str] | None = None) -> machine.Ended:
        return machine.run([str(word) for word in command], limit, self.log, self.gpu, environment)

    def save(self) -> None:
        """Writes both files anew, whole or not at all."""
        report.judge(self.results)
        text = json.dumps(self.results, indent=1, allow_nan=False) + "\n"
        for name, content in (("results.json", text), ("RESULTS.md", report.document(self.results))):
            path = self.args.out / name
            fresh = path.with_suffix(".new")
            fresh.write_text(content)
            fresh.replace(path)


def note(found: dict[str, Any], remark: str) -> None:
    """A remark that stands in the results and is seen at once."""
    found["remarks"].append(remark)
    print(f"  {remark}", flush=True)


def cuda_libraries() -> dict[str, str]:
    """The environment in which our binary finds CUDA's libraries: also those that torch's wheels brought along."""
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(place) / "cu13" / "lib" for place in (spec.submodule_search_locations or [])] if spec else []
    paths = [os.environ.get("LD_LIBRARY_PATH", ""), *(str(folder) for folder in folders if folder.is_dir())]
    return {"LD_LIBRARY_PATH": ":".join(filter(None, paths))}


# --- the commands


def check_command(args: argparse.Namespace) -> list[str | Path]:
    return [*args.gpu_binary, "gpu-check", "--json", *host_words(args)]


def host_words(args: argparse.Namespace) -> list[str]:
    """In a dry run with the program itself: its kernels on the CPU."""
    return ["--device", "host"] if args.host else []


def bench_command(args: argparse.Namespace, rows: int, length: int, quantization: str) -> list[str | Path]:
    shape = "tiny" if args.host else "llama-8b"
    about = ["--shape", shape, "--rows", rows, "--length", length, "--quantization", quantization, "--r", RANK]
    steps = ["--warmup", "1" if args.host else "2", "--steps", str(args.steps)]
    return [*args.gpu_binary, "gpu-bench", "--json", *map(str, about), *steps, *host_words(args)]


def peer_command(args: argparse.Namespace) -> list[str | Path]:
    what = ["--toy"] if args.dry_run else ["--shapes", ",".join(f"{rows}x{length}" for rows, length in SHAPES)]
    return [args.python, HERE / "peer_peft_bnb.py", *what, "--rank", str(RANK), "--steps", str(args.steps)]


def train_command(args: argparse.Namespace, recipe: str, device: str, compute: str, folder: Path) -> list[str | Path]:
    sets = {
        "device": device,
        "compute": compute,
        "output_dir": folder,
        "training.max_steps": args.train_steps,
        "training.eval_steps": 0,
        "training.save_steps": 0,
        "data.cache": "off",
        "data.validation": "{path: examples/gene_ontology/validation.jsonl, limit: 32}",
    }
    if recipe.startswith("smollm2"):
        sets["base.model"] = args.model
    words = [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    return [args.binary, "train", ROOT / "recipes" / f"{recipe}.yaml", *words, "--overwrite", "--offline", "--quiet"]


def train_runs(args: argparse.Namespace) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Each recipe with devices and types; the last one, f32 on the CPU, is what the others are held against."""
    others = [("cpu", "f32")] if args.dry_run else [("cuda:0", "f32"), ("cuda:0", "bf16")]
    for recipe in ("quickstart", *(["smollm2-135m-bft"] if args.model else [])):
        yield recipe, [*others, ("cpu", "f32")]


def bench_keys(args: argparse.Namespace) -> list[tuple[int, int, str]]:
    """What is measured; the first once more behind the peer, so that a drift of the machine shows."""
    if args.host:
        return [(2, 48, "q4_k")]
    return [(rows, length, quantization) for quantization in QUANTIZATIONS for rows, length in SHAPES]


# --- the parts


def check(call: Call) -> None:
    """Every operation and whole steps against the CPU."""
    found, ended = call.start("check"), call.run(check_command(call.args), call.left(LIMITS["check"]), cuda_libraries())
    found |= {"checks": reading.checks(ended.text), "seconds": ended.seconds, "outcome": ended.outcome()}
    found["complete"] = not ended.timed_out and ended.status in (0, 1) and bool(found["checks"])
    if not found["complete"]:
        note(found, f"not all was compared: {ended.outcome()}; log.txt may say why")


def bench(call: Call) -> None:
    """Our side, shape by shape."""
    found, end = call.start("bench"), time.monotonic() + LIMITS["bench"]
    found["runs"] = []
    for key in bench_keys(call.args)[: 1 if call.args.dry_run else None]:
        bench_once(call, found, key, end)


def bench_once(call: Call, found: dict[str, Any], key: tuple[int, int, str], end: float) -> None:
    """One measurement in a process of its own."""
    rows, length, quantization = key
    limit = call.left(BENCH_LIMIT, end)
    if limit < 5:
        return note(found, f"{rows}x{length} {quantization}: left out, no time was left")
    ended = call.run(bench_command(call.args, *key), limit, cuda_libraries())
    told = reading.benches(ended.text)
    if not told:
        return note(found, f"{rows}x{length} {quantization}: no result, {ended.outcome()}; log.txt may say why")
    # What was asked for is the key, so that a program that forgets to repeat it is read all the same.
    asked = {"rows": rows, "length": length, "quantization": quantization, "r": RANK}
    wrong = {name: told[-1][name] for name in asked if told[-1].get(name, asked[name]) != asked[name]}
    if wrong:
        return note(found, f"{rows}x{length} {quantization}: it measured something else: {wrong}")
    found["runs"].append({**told[-1], **asked, "device_bytes": ended.peak(), "seconds": ended.seconds})
    call.save()


def peer(call: Call) -> None:
    """The other side, all shapes in one process; then our first shape once more."""
    found = call.start("peer")
    ended = call.run(peer_command(call.args), call.left(LIMITS["peer"]))
    found |= {"outcome": ended.outcome(), "seconds": ended.seconds, "runs": peer_runs(ended)}
    for _, line in ended.arrivals:
        if line.get("event") in ("start", "gemm", "model"):
            found[line["event"]] = {name: value for name, value in line.items() if name != "event"}
        elif line.get("event") == "failed":
            note(found, f"{line.get('rows', '?')}x{line.get('length', '?')} {line.get('mode', '')}: {line['why']}")
    if not any(line.get("event") == "end" for _, line in ended.arrivals):
        note(found, f"not all was measured: {ended.outcome()}; log.txt may say why")
    call.save()
    ours = call.results["parts"].get("bench")
    if ours and ours["date"] == call.date:
        bench_once(call, ours, bench_keys(call.args)[0], float("inf"))


def peer_runs(ended: machine.Ended) -> list[dict[str, Any]]:
    """The peer's measurements, each with the most memory of the whole GPU from its beginning to its end."""
    runs, began = [], 0.0
    for came, line in ended.arrivals:
        if line.get("event") == "begin":
            began = came
        elif line.get("event") == "bench":
            runs += [{**each, "device_bytes": ended.peak(began, came)} for each in reading.benches(json.dumps(line))]
    return runs


def train(call: Call) -> None:
    """The same training on the GPU and on the CPU."""
    found, end = call.start("train"), time.monotonic() + LIMITS["train"]
    found["steps"], found["runs"] = call.args.train_steps, []
    if call.args.binary is None:
        return note(found, "skipped: no binary of equipoise (--binary)")
    if not call.args.model:
        why = "too large for a dry run" if call.args.dry_run else f"no model (--model PATH; looked for {MODEL})"
        note(found, f"SmolLM2: skipped, {why}")
    for recipe, runs in train_runs(call.args):
        curves = {}
        for index, (device, compute) in enumerate(runs):
            folder = call.work / f"{recipe}-{index}"
            command = train_command(call.args, recipe, device, compute, folder)
            ended = call.run(command, call.left(LIMITS["train"], end), cuda_libraries())
            curves[index] = reading.curve(folder)
            if ended.timed_out or ended.status != 0:
                note(found, f"{recipe} on {device} in {compute}: {ended.outcome()} at step {len(curves[index])}")
        for index, (device, compute) in enumerate(runs[:-1]):
            difference = reading.compared(curves[index], curves[len(runs) - 1], call.args.train_steps)
            about = {"recipe": recipe, "device": device, "compute": compute, **difference}
            found["runs"].append({**about, "curve": curves[index], "reference": curves[len(runs) - 1]})
        call.save()


WORK = {"check": check, "bench": bench, "peer": peer, "train": train}


# --- the dry run


def plan(args: argparse.Namespace) -> Iterator[str]:
    """What a run would do, a line each."""
    yield f"in all at most {args.limit:.0f} s, results in {args.out}"
    commands: dict[str, list[list[str | Path]]] = {
        "check": [check_command(args)],
        "bench": [bench_command(args, *key) for key in bench_keys(args)],
        "peer": [peer_command(args), bench_command(args, *bench_keys(args)[0])],
        "train": [
            train_command(args, recipe, device, compute, Path("FOLDER"))
            for recipe, runs in train_runs(args)
            for device, compute in runs
        ],
    }
    for part in args.only:
        yield f"{part}: at most {LIMITS[part]:.0f} s"
        yield from (f"  {shlex.join(str(word) for word in command)}" for command in commands[part])


def missing(args: argparse.Namespace) -> Iterator[str]:
    """What a run with a GPU would lack."""
    code = f"import importlib.util as u; print(*[n for n in {PEER_NEEDS} if not u.find_spec(n)])"
    told = output([args.python, "-c", code])
    if "peer" in args.only and told:
        yield f"in {args.python}: {told}"
    for name, needed, binary in (
        ("equipoise", "train" in args.only, [args.binary] if args.binary else None),
        ("equipoise-gpu", {"check", "bench"} & set(args.only), args.gpu_binary),
    ):
        if not needed:
            continue
        if binary is None:
            yield f"{name}: not given (without --binary a run builds it)"
        elif not output([*binary, "--help"]):
            yield f"{binary[0]} --help fails"
    if "train" in args.only and not args.model:
        yield f"a model of SmolLM2: --model PATH ({MODEL}); that comparison would be skipped"


def dry_run(args: argparse.Namespace) -> None:
    """Tells the plan, then runs all parts small and on the CPU, with a stand-in for what only a GPU can answer."""
    found = machine.about(machine.Gpu())
    print(f"machine: {found['cpu']}, {found['cores']} cores; GPU: {found['gpu'] or 'none seen by NVML'}")
    for line in missing(args):
        print(f"missing: {line}")
    given, args.gpu_binary = args.gpu_binary, args.gpu_binary or ["equipoise-gpu"]
    shown = argparse.Namespace(**{**vars(args), "dry_run": False, "binary": args.binary or "equipoise"})
    print("\nthe plan of a run with a GPU:", *plan(shown), sep="\n  ")
    args.host = given is not None and works_on_host(given)
    args.gpu_binary = given if args.host else [sys.executable, HERE / "standin.py"]
    args.out, args.train_steps, args.steps, args.model = Path(tempfile.mkdtemp(prefix="gpu-sample-")), 3, 3, None
    print(f"\nsmall and on the CPU, into {args.out}, {args.gpu_binary[-1]} in place of a GPU:")
    results = call_parts(args)
    print(f"\n{(args.out / 'RESULTS.md').read_text()}\nsample report: {args.out}/RESULTS.md")
    parts = results["parts"]
    wanted = {"check": "checks", "bench": "runs", "peer": "runs", **({"train": "runs"} if args.binary else {})}
    wrong = [part for part in args.only if part in wanted and not parts[part].get(wanted[part])]
    if wrong:
        raise SystemExit(f"the dry run failed: nothing came from {', '.join(wrong)}; see {args.out}/log.txt")


def works_on_host(program: list[str | Path]) -> bool:
    """Whether the program finds a C++ compiler and its sources, and so runs its kernels on the CPU."""
    small = ["--shape", "tiny", "--rows", "1", "--length", "2", "--warmup", "1", "--steps", "1", "--device", "host"]
    return bool(output([*program, "gpu-bench", "--json", *small], limit=60))


# --- the whole


def call_parts(args: argparse.Namespace) -> dict[str, Any]:
    """Runs the parts that are wanted; one that breaks does not keep the next from running."""
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "log.txt").open("w") as log, tempfile.TemporaryDirectory() as work:
        call = Call(args, log, Path(work))
        for part in args.only:
            print(f"{part} ...", flush=True)
            begun = time.monotonic()
            if call.left(LIMITS[part]) < 5:
                note(call.start(part), "left out: no time was left")
            else:
                attempt(call, part)
            print(f"{part}: {time.monotonic() - begun:.0f} s", flush=True)
            call.save()
        return call.results


def attempt(call: Call, part: str) -> None:
    """Runs a part; what goes wrong in it stands in the results and the log."""
    try:
        WORK[part](call)
    except Exception as error:
        traceback.print_exc(file=call.log)
        note(call.results["parts"].get(part) or call.start(part), f"broke off: {type(error).__name__}: {error}")


def said(arguments: list[str]) -> str:
    """The command as it was given to run.sh."""
    return os.environ.get("GPU_RUN_SAID") or shlex.join(arguments)


def output(command: list[str | Path], limit: float = 20) -> str:
    """What a program prints; nothing if it fails."""
    try:
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=limit)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def version(args: argparse.Namespace) -> str:
    """The binary's, and the commit of this checkout, if it is one."""
    commit = args.commit or output(["git", "-C", ROOT, "describe", "--always", "--dirty"])
    told = output([args.binary, "--version"]) if args.binary else ""
    return ", ".join(filter(None, (told, commit and f"commit {commit}")))


def model() -> Path | None:
    """SmolLM2 where it is kept beside a checkout."""
    shared = Path(os.environ.get("EQUIPOISE_SHARED", ROOT.parent / "shared"))
    path = shared / "models" / MODEL
    return path if path.exists() else None


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run.sh", description=__doc__.partition("\n")[0])
    parser.add_argument("--binary", type=Path, help="equipoise, built; without it, it is built now")
    parser.add_argument("--gpu-binary", type=Path, help="equipoise-gpu; else the one beside --binary")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="where results go (%(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="needs no GPU: the plan, and a sample of the report")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between (%(default)s)")
    parser.add_argument("--model", type=Path, default=model(), help="SmolLM2-135M-Instruct, a GGUF file or a folder")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that has torch and the peer")
    parser.add_argument("--commit", help="what the binaries were built from, where this is no checkout of it")
    parser.add_argument("--steps", type=int, default=6, help="steps of a measurement, behind two of warm-up")
    parser.add_argument("--train-steps", type=int, default=40, help="steps of a training (%(default)s)")
    parser.add_argument("--limit", type=float, default=570.0, help="seconds of the whole call (%(default)s)")
    args = parser.parse_args()
    args.only = [part for part in PARTS if part in (names := args.only.split(","))]
    if unknown := set(names) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if min(args.steps, args.train_steps, args.limit) <= 0:
        parser.error("--steps, --train-steps and --limit are above 0")
    if args.model and not args.model.exists():
        parser.error(f"--model: {args.model} is not there")
    args.model = args.model.resolve() if args.model else None
    args.gpu_binary = [args.gpu_binary] if args.gpu_binary else None
    args.host = False
    args.said, args.version = said(sys.argv), version(args)
    return args


def main() -> None:
    args = parse()
    if os.environ.get("GPU_RUN_LOOK"):
        return
    os.chdir(ROOT)
    # Who is told to end ends its processes too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if args.dry_run:
        return dry_run(args)
    results = call_parts(args)
    print(f"\n{(args.out / 'RESULTS.md').read_text()}")
    raise SystemExit(0 if report.all_met(results, may_be_unknown=len(args.only) < len(PARTS)) else 1)


if __name__ == "__main__":
    main()
