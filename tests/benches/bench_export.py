#!/usr/bin/env python3
"""Export an adapter in many types: what each loses, how long it takes, and how much memory.

    python3 tests/benches/bench_export.py --adapter adapters/x --out EMPTY-FOLDER
    python3 tests/benches/bench_export.py --adapter ADAPTER --base original:FOLDER --out EMPTY-FOLDER
    python3 tests/benches/bench_export.py --adapter ADAPTER --out EMPTY-FOLDER --no-verify --targets merged:bf16,gguf:q4_k

Each export runs in a process of its own, by `target/release/equipoise` (or --binary), and is removed after it was measured.
Fidelity is what `equipoise export` finds: KL(base + adapter || export) and top-1 agreement over its built-in texts. Time is
the writing alone; memory is the largest resident set of a run with --no-verify. Prints a Markdown table.
"""

import argparse
import json
import os
import shutil
import subprocess
from pathlib import Path

TARGETS = (
    "merged:f32,merged:bf16,merged:f16,gguf:f16,gguf:q8_0,gguf:q6_k,gguf:q5_k,gguf:q5_1,gguf:q4_k,gguf:q4_1,gguf:q4_0,"
    "gguf:q3_k,gguf:q2_k"
)


def run(command):
    """Exit code, stdout, peak resident MiB."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    stdout, stderr = process.stdout.read(), process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    return os.waitstatus_to_exitcode(status), stdout, stderr, usage.ru_maxrss / 1024


def export(arguments, target, kind, more):
    shutil.rmtree(arguments.out / "export", ignore_errors=True)
    flag = "--dtype" if target == "merged" else "--quantize"
    command = [arguments.binary, "export", arguments.adapter, "--json", "--to", target, flag, kind]
    command += ["--out", str(arguments.out / "export"), *more]
    if arguments.base:
        command += ["--base", arguments.base]
    code, stdout, stderr, peak = run(command)
    lines = [json.loads(line) for line in stdout.splitlines()]
    summary = next((line for line in lines if line["event"] == "summary"), None)
    if summary is None:
        raise SystemExit(f"{' '.join(command)}: exit {code}\n{stderr}")
    return summary["exports"][0], peak


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--base")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--binary", default="target/release/equipoise")
    parser.add_argument("--targets", default=TARGETS)
    parser.add_argument("--no-verify", action="store_true")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    print("| export | mean KL (nats) | max KL | top-1 | size (MB) | seconds | MB/s | peak memory (MiB) |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    alone = None
    for target, kind in (pair.split(":") for pair in arguments.targets.split(",")):
        written, peak = export(arguments, target, kind, ["--no-verify"])
        size = sum(file["bytes"] for file in written["manifest"]["files"]) / 1e6
        fidelity = "| | |"
        if not arguments.no_verify:
            verified = export(arguments, target, kind, [])[0]["verified"]
            found, alone = verified["difference"], verified["base_alone"]
            fidelity = f"{found['mean_kl']:.2g} | {found['max_kl']:.2g} | {found['top1_agreement']:.1%}"
        seconds = written["seconds"]
        print(f"| {target} {kind} | {fidelity} | {size:.0f} | {seconds:.1f} | {size / seconds:.0f} | {peak:.0f} |", flush=True)
    if alone:
        print(f"| (base alone) | {alone['mean_kl']:.2g} | {alone['max_kl']:.2g} | {alone['top1_agreement']:.1%} | | | | |")
    shutil.rmtree(arguments.out / "export", ignore_errors=True)


main()
