#!/usr/bin/env python3
"""All that needs the GPU, part by part, each in its own time. run.sh starts it; README.md says what comes out.

Only the standard library is needed here; the peer, a process of its own, needs torch and what stands in PEER_NEEDS.
"""

import argparse
import json
import os
import shlex
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import commands
import dry
import goals
import machine
import paths
import reading
import report
from call import GPU_LOST, Call, GpuLost, Log, note
from checking import check, tail
from commands import HERE, LIMITS, PARTS, ROOT, Measurement

SHORTEST = 5.0
"""Seconds under which a part or a measurement is not begun."""


# --- speed


def glance(call: Call) -> None:
    """One short measurement, for its profile: where the time of a step goes."""
    found = call.start("glance")
    found["runs"] = []
    measure(call, found, commands.HEADLINE, time.monotonic() + LIMITS["glance"], glance=True)
    found["complete"] = bool(found["runs"])


def bench(call: Call) -> None:
    """Our side, what matters most first."""
    found, end = call.start("bench"), time.monotonic() + LIMITS["bench"]
    found["runs"] = []
    wanted = commands.measurements(call.args)
    for what in wanted:
        measure(call, found, what, end)
    found["complete"] = len(found["runs"]) == len(wanted)


def measure(call: Call, found: dict[str, Any], what: Measurement, end: float, glance: bool = False) -> None:
    """One measurement in a process of its own, into `runs`."""
    limit = call.left(commands.BENCH_LIMIT, end)
    # What cannot end in time would only take it from others.
    if limit < min((run["seconds"] for run in found["runs"]), default=SHORTEST):
        return note(found, f"{what}: left out, too little time was left")
    ended = call.run_ours(commands.bench_command(call.args, what, glance), limit)
    results = reading.benches(ended.text)
    if not results:
        return note(found, f"{what}: no result: {ended.why()}")
    # What was asked for is the key, so that a program that forgets to repeat it is read all the same.
    _, rows, length = commands.shape(call.args, what)
    asked = {"rows": rows, "length": length, "quantization": what.quantization, "r": commands.RANK}
    if what.kept == "0":
        asked["kept_layers"] = 0
    result = results[-1]
    wrong = {name: result[name] for name in asked if result.get(name, asked[name]) != asked[name]}
    if wrong:
        return note(found, f"{what}: it measured something else: {wrong}")
    ours = {"variant": what.variant, "max_memory_mb": what.max_memory_mb, "date": call.date}
    found["runs"].append({**result, **asked, **ours, "device_bytes": ended.peak(), "seconds": ended.seconds})
    call.save()


def peer(call: Call) -> None:
    """The other side, all shapes in one process; then ours again, once in a share of the peer's memory."""
    found, end = call.start("peer"), time.monotonic() + LIMITS["peer"]
    found |= {"runs": [], "ours": []}
    ended = call.run(commands.peer_command(call.args), call.left(commands.PEER_LIMIT, end))
    found |= {"outcome": ended.outcome(), "seconds": ended.seconds, "runs": peer_runs(ended)}
    for _, line in ended.arrivals:
        if line.get("event") in ("start", "gemm", "model"):
            found[line["event"]] = {name: value for name, value in line.items() if name != "event"}
        elif line.get("event") == "failed":
            note(found, f"{line.get('rows', '?')}x{line.get('length', '?')} {line.get('mode', '')}: {line['why']}")
    to_the_end = any(line.get("event") == "end" for _, line in ended.arrivals)
    if not to_the_end:
        note(found, f"not all was measured: {ended.why()}")
    call.save()
    beside(call, found, end)
    found["complete"] = to_the_end and len(found["ours"]) == 2


def peer_runs(ended: machine.Ended) -> list[dict[str, Any]]:
    """The peer's measurements, each with the most memory of the whole GPU from its beginning to its end."""
    runs, began = [], 0.0
    for came, line in ended.arrivals:
        if line.get("event") == "begin":
            began = came
        elif line.get("event") == "bench":
            runs += [{**each, "device_bytes": ended.peak(began, came)} for each in reading.benches(json.dumps(line))]
    return runs


def beside(call: Call, found: dict[str, Any], end: float) -> None:
    """Ours in the peer's part: in a share of the peer's memory, and as before, so that a drift of the machine shows."""
    memory = dry.MEMORY_MB if call.args.dry_run else fitting(found["runs"])
    again = {"runs": found["ours"], "remarks": found["remarks"]}
    if memory is None:
        note(found, f"{commands.KEPT} within a share of the peer's memory: left out, the peer named no peak")
    else:
        what = commands.HEADLINE
        measure(call, again, Measurement(what.rows, what.length, what.quantization, "auto", memory), end)
    measure(call, again, commands.HEADLINE, end)


def fitting(runs: list[dict[str, Any]]) -> int | None:
    """MiB: the share of the peer's smallest peak at the headline's shape."""
    what = commands.HEADLINE
    alike = [run for run in runs if (run.get("rows"), run.get("length")) == (what.rows, what.length)]
    known = [run["peak_bytes"] for run in alike if run.get("peak_bytes")]
    return int(commands.MEMORY_SHARE * min(known)) >> 20 if known else None


# --- training


def train(call: Call) -> None:
    """The same training on the GPU and on the CPU."""
    found, end = call.start("train"), time.monotonic() + LIMITS["train"]
    model = call.args.model
    found |= {"steps": call.args.train_steps, "runs": [], "stderr": {}, "model": model.name if model else None}
    if call.args.binary is None:
        return note(found, "skipped: no binary of equipoise (--binary)")
    if not model:
        why = "too large for a dry run" if call.args.dry_run else f"no model (--model; looked for {commands.MODEL})"
        note(found, f"SmolLM2: skipped, {why}")
    elif layers := commands.first_layers(model.name):
        note(found, f"SmolLM2 has its first {layers} layers only: {model.name}")
    for recipe, runs in commands.train_runs(call.args):
        curves = {}
        for index, (device, compute) in enumerate(runs):
            what, folder = f"{recipe} on {device} in {compute}", call.work / f"{recipe}-{index}"
            limits = commands.TRAIN_LIMITS if index else commands.REFERENCE_LIMITS
            limit, curves[index] = call.left(limits[recipe], end), []
            if limit < SHORTEST:
                note(found, f"{what}: left out, too little time was left")
            else:
                command = commands.train_command(call.args, recipe, device, compute, folder)
                ended = call.run_ours(command, limit)
                curves[index] = reading.curve(folder)
                if ended.timed_out or ended.status != 0:
                    note(found, f"{what}: {ended.why()}, at step {len(curves[index])}")
                    found["stderr"][what] = tail(ended)
            if index:
                difference = reading.compared(curves[index], curves[0], call.args.train_steps)
                about = {"recipe": recipe, "device": device, "compute": compute, **difference}
                found["runs"].append({**about, "curve": curves[index], "reference": curves[0]})
                call.save()
    found["complete"] = all(run["complete"] for run in found["runs"])


def evidence(call: Call) -> None:
    """SmolLM2 under each objective, with two seeds: validation before and after."""
    found, end = call.start("evidence"), time.monotonic() + LIMITS["evidence"]
    args = call.args
    found |= {"steps": args.evidence_steps, "runs": [], "recipe": commands.evidence_recipe(args)}
    found["model"] = args.model.name if args.model else None
    if args.binary is None:
        return note(found, "skipped: no binary of equipoise (--binary)")
    if not args.dry_run and (args.model is None or commands.first_layers(args.model.name)):
        return note(found, f"skipped: it needs the whole model (--model), not {found['model']}")
    wanted = len(commands.SEEDS) * len(commands.OBJECTIVES)
    for seed in commands.SEEDS:
        for objective in commands.OBJECTIVES:
            folder = call.work / f"evidence-{objective}-{seed}"
            limit = call.left(commands.EVIDENCE_LIMIT, end)
            if limit < SHORTEST:
                note(found, f"{objective}, seed {seed}: left out, too little time was left")
                continue
            ended = call.run_ours(commands.evidence_command(args, objective, seed, folder), limit)
            found["runs"].append(learnt(folder, objective, seed, args.evidence_steps))
            if ended.timed_out or ended.status != 0:
                note(found, f"{objective}, seed {seed}: {ended.why()}")
            call.save()
    found["complete"] = len(found["runs"]) == wanted and all(run["after"] for run in found["runs"])


def learnt(folder: Path, objective: str, seed: int, steps: int) -> dict[str, Any]:
    """What validation said before the first step and after the last; nothing for one that was not reached."""
    found = reading.validations(folder)
    return {"objective": objective, "seed": seed, "before": found.get(0), "after": found.get(steps)}


WORK = {"check": check, "glance": glance, "bench": bench, "peer": peer, "train": train, "evidence": evidence}


# --- the whole


def call_parts(args: argparse.Namespace) -> Call:
    """Runs the parts that are wanted; one that breaks does not keep the next from running."""
    args.out.mkdir(parents=True, exist_ok=True)
    mode = "a" if (args.out / "results.json").exists() else "w"
    with (
        Log(args.out / "log.txt", mode) as log,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work,
    ):
        call = Call(args, log, Path(work))
        try:
            paths.survey(call)
        except GpuLost as lost:
            print(lost, flush=True)
        call.save()
        for part in args.only:
            print(f"{part} ...", flush=True)
            begun = time.monotonic()
            if call.lost:
                note(call.start(part), GPU_LOST)
            elif call.left(LIMITS[part]) < SHORTEST:
                note(call.start(part), "left out: no time was left")
            else:
                attempt(call, part)
            call.took[part] = time.monotonic() - begun
            print(f"{part}: {call.took[part]:.0f} s", flush=True)
            call.save()
        if call.gpu.silent:
            print("NVML gave no answer: memory on the device was not counted from then on", flush=True)
        return call


def attempt(call: Call, part: str) -> None:
    """Runs a part; what goes wrong in it stands in the results and the log."""
    try:
        WORK[part](call)
    except GpuLost as lost:
        note(call.results["parts"][part], f"the rest was {lost}")
    except Exception as error:
        traceback.print_exc(file=call.log)
        found = call.results["parts"].get(part)
        found = found if found and found["date"] == call.date else call.start(part)
        note(found, f"broke off: {type(error).__name__}: {error}")


def all_is_well(call: Call) -> bool:
    """Whether every part that was asked for is complete, and no goal is missed."""
    complete = all(call.results["parts"][part]["complete"] for part in call.args.only)
    partly = not set(commands.DEFAULT) <= set(call.args.only)
    return complete and not call.lost and not call.unwritten and goals.all_met(call.results, may_be_unknown=partly)


def said(arguments: list[str]) -> str:
    """The command as it was given to run.sh."""
    return os.environ.get("GPU_RUN_SAID") or shlex.join(arguments)


def version(args: argparse.Namespace) -> str:
    """The binary's, and the commit of this checkout, if it is one."""
    commit = args.commit or paths.output(["git", "-C", ROOT, "describe", "--always", "--dirty"])
    binary = paths.output([args.binary, "--version"]) if args.binary else ""
    return ", ".join(filter(None, (binary, commit and f"commit {commit}")))


def model() -> Path | None:
    """SmolLM2 where it is kept beside a checkout."""
    shared = Path(os.environ.get("EQUIPOISE_SHARED", ROOT.parent / "shared"))
    path = shared / "models" / commands.MODEL
    return path if path.exists() else None


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run.sh", description=__doc__.partition("\n")[0])
    parser.add_argument("--binary", type=Path, help="equipoise, built; without it, it is built now")
    parser.add_argument("--gpu-binary", type=Path, help="equipoise-gpu; else the one beside --binary")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="where results go (%(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="needs no GPU: the plan, and a sample of the report")
    default = f"parts, with commas between ({','.join(commands.DEFAULT)}; in a dry run all)"
    parser.add_argument("--only", help=default)
    parser.add_argument("--model", type=Path, default=model(), help="SmolLM2-135M-Instruct, a GGUF file or a folder")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that has torch and the peer")
    parser.add_argument("--commit", help="what the binaries were built from, where this is no checkout of it")
    parser.add_argument("--steps", type=int, default=6, help="steps of a measurement, behind two of warm-up")
    parser.add_argument("--train-steps", type=int, default=40, help="steps of a training (%(default)s)")
    parser.add_argument("--evidence-steps", type=int, default=200, help="steps of a training of evidence (%(default)s)")
    parser.add_argument("--limit", type=float, default=570.0, help="seconds of the whole call (%(default)s)")
    args = parser.parse_args(arguments)
    names = args.only.split(",") if args.only else PARTS if args.dry_run else commands.DEFAULT
    args.only = [part for part in PARTS if part in names]
    if unknown := set(names) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if min(args.steps, args.train_steps, args.evidence_steps, args.limit) <= 0:
        parser.error("--steps, --train-steps, --evidence-steps and --limit are above 0")
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
    # An end by SIGTERM or SIGHUP (unless under nohup) ends the processes too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))
    if args.dry_run:
        return dry.run(args, lambda: call_parts(args))
    call = call_parts(args)
    # The file may be missing, on a full disk. It is longer, too: what passed stands in it alone.
    print(f"\n{report.document(call.results, passed=False)}")
    print(*(f"{part}: {seconds:.0f} s" for part, seconds in call.took.items()), sep="\n", flush=True)
    code = 0 if all_is_well(call) else 1
    if call.lost or call.gpu.silent:
        # Threads and processes that hang are left behind: an ordinary end could wait for them.
        os._exit(code)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
