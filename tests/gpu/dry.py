"""The dry run: the plan of a run with a GPU, and all parts small and on the CPU."""

import argparse
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import commands
import machine
import paths
import standin
from commands import HERE, LIMITS

if TYPE_CHECKING:
    from call import Call

STEPS = 3
"""Of each measurement and training."""
MEMORY_MB = 1024
"""In the place of a share of the peer's memory."""
FAULTS = "rows=far,linear=abort,attention=hang,head=lost,optimizer=open,steps=watchdog"
"""How the stand-in goes wrong, so that the sample shows each way."""


def plan(args: argparse.Namespace) -> Iterator[str]:
    """What a run would do, a line each."""
    yield f"in all at most {args.limit:.0f} s, results in {args.out}"
    words: dict[str, list[list[str | Path]]] = {
        "check": [commands.check_command(args, theme, commands.each_limit(limit)) for theme, limit in commands.THEMES.items()],
        "glance": [commands.bench_command(args, commands.HEADLINE, glance=True)],
        "bench": [commands.bench_command(args, what) for what in commands.measurements(args)],
        "peer": [
            commands.peer_command(args),
            [*commands.bench_command(args, commands.KEPT), "--max-memory-mb", "MIB"],
            commands.bench_command(args, commands.HEADLINE),
        ],
        "train": [
            commands.train_command(args, recipe, device, compute, Path("FOLDER"))
            for recipe, runs in commands.train_runs(args)
            for device, compute in runs
        ],
        "evidence": [
            commands.evidence_command(args, objective, seed, Path("FOLDER"))
            for seed in commands.SEEDS
            for objective in commands.OBJECTIVES
        ],
    }
    for part in args.only:
        yield f"{part}: at most {LIMITS[part]:.0f} s"
        yield from (f"  {shlex.join(str(word) for word in command)}" for command in words[part])


def missing(args: argparse.Namespace) -> Iterator[str]:
    """What a run with a GPU would lack."""
    if "peer" in args.only and (packages := lacking(args)):
        yield f"in {args.python}: {packages}; the peer would not run"
    for name, users, binary in (
        ("equipoise", {"train", "evidence"}, [args.binary] if args.binary else None),
        ("equipoise-gpu", {"check", "glance", "bench", "peer"}, args.gpu_binary),
    ):
        if not users & set(args.only):
            continue
        if binary is None:
            yield f"{name}: not given (without --binary a run builds it)"
        elif not paths.output([*binary, "--help"]):
            yield f"{binary[0]} --help fails"
    if not args.model and {"train", "evidence"} & set(args.only):
        yield f"a model of SmolLM2: --model PATH ({commands.MODEL}); what needs it would be skipped"


def lacking(args: argparse.Namespace) -> str:
    """The peer's packages that are not there."""
    code = f"import importlib.util as u; print(*[n for n in {commands.PEER_NEEDS} if not u.find_spec(n)])"
    return paths.output([args.python, "-c", code])


def run(args: argparse.Namespace, call_parts: Callable[[], "Call"]) -> None:
    """Prints the plan, then runs all parts small and on the CPU, with a stand-in for what only a GPU can answer."""
    found = machine.about(machine.Gpu())
    print(f"machine: {found['cpu']}, {found['cores']} cores; GPU: {found['gpu'] or 'none seen by NVML'}")
    for line in missing(args):
        print(f"missing: {line}")
    given, args.gpu_binary = args.gpu_binary, args.gpu_binary or ["equipoise-gpu"]
    shown = argparse.Namespace(**{**vars(args), "dry_run": False, "binary": args.binary or "equipoise"})
    print("\nthe plan of a run with a GPU:", *plan(shown), sep="\n  ")
    args.host = given is not None and works_on_host(given)
    if not args.host:
        args.gpu_binary = [sys.executable, HERE / "standin.py"]
        os.environ.setdefault(standin.FAULTS, FAULTS)
    args.out, args.model = Path(tempfile.mkdtemp(prefix="gpu-sample-")), None
    args.steps = args.train_steps = args.evidence_steps = STEPS
    print(f"\nsmall and on the CPU, into {args.out}, {args.gpu_binary[-1]} in place of a GPU:", flush=True)
    results = call_parts().results
    print(f"\n{(args.out / 'RESULTS.md').read_text()}\nsample report: {args.out}/RESULTS.md")
    wanted = {part: expected(args, part) for part in args.only}
    wrong = [part for part, name in wanted.items() if name and not results["parts"][part].get(name)]
    if wrong:
        raise SystemExit(f"the dry run failed: nothing came from {', '.join(wrong)}; see {args.out}/log.txt")


def expected(args: argparse.Namespace, part: str) -> str | None:
    """What a part must have found here."""
    if part in ("train", "evidence") and not args.binary or part == "peer" and lacking(args):
        return None
    return "checks" if part == "check" else "runs"


def works_on_host(program: list[str | Path]) -> bool:
    """Whether the program finds a C++ compiler and its sources, and so runs its kernels on the CPU."""
    small = ["--shape", "tiny", "--rows", "1", "--length", "2", "--warmup", "1", "--steps", "1", "--device", "host"]
    return bool(paths.output([*program, "gpu-bench", "--json", *small], limit=60))
