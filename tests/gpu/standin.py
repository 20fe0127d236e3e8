#!/usr/bin/env python3
"""Stands in for equipoise-gpu in a dry run: prints what README.md asks of it, with numbers that measure nothing.

The environment variable GPU_STANDIN makes it go wrong: `theme=fault`, with commas between, also `bench=fault`.
"""

import argparse
import json
import os
import sys
import time

FAULTS = "GPU_STANDIN"
THEMES = {
    "rows": ("rms_norm", "swiglu"),
    "linear": ("linear q4_k 64x64", "linear q8_0 64x64"),
    "attention": ("attention 8 of 32 heads of 128, [2047]", "attention 3 of 9 heads of 64, [130]"),
    "head": ("head 1101x1024x128256", "head 7x64x257"),
    "optimizer": ("norm", "adamw"),
    "steps": ("step Sft, ragged: loss", "step Sft, ragged: gradient", "step Sft, ragged: worst tensor"),
}
LAYERS, FITTING = 32, 9
"""Layers, and how many of them are kept within any limit of memory."""
PIECES = (
    ("frozen products", "4096x14336x4096 NT beta=1 bf16", "product", 64, 0.5, 0.25, 0.001),
    ("frozen products", "4096x4096x4096 NT beta=0 bf16", "product", 64, 0.125, 0.0625, 0.001),
    ("dequantize", "dequantize_q4k_bf16", "kernel", 224, 0.0625, 0.0, 0.05),
    ("attention", "attention_bf16", "kernel", 64, 0.125, 0.02, 0.01),
    ("copies", "copy", "copy", 64, 0.0625, 0.0, 0.0625),
)
"""Part, piece, kind, count, seconds, and shares of the two peaks times a second: FLOP and bytes."""


def say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


def faults() -> dict[str, str]:
    pairs = (pair.partition("=") for pair in os.environ.get(FAULTS, "").split(",") if pair)
    return {theme: fault for theme, _, fault in pairs}


def opened() -> None:
    folder = "/nowhere/lib"
    libraries = {"cuBLAS 0": "libcublas.so.0", "cuBLASLt 0": "libcublasLt.so.0", "NVRTC 0": "libnvrtc.so.0"}
    paths = {"driver (CUDA 0)": "/nowhere/libcuda.so.1"} | {name: f"{folder}/{file}" for name, file in libraries.items()}
    say(event="opened", gpu="a stand-in, no GPU", libraries=paths)


def wrong(fault: str, name: str, dtype: str, each: float) -> None:
    """A fault in the middle of a theme, with what the program still says of it."""
    failed = {"name": name, "dtype": dtype, "error": None, "tolerance": 0.0, "passed": False}
    if fault == "abort":
        os.abort()
    elif fault == "hang":
        time.sleep(3600)
    elif fault == "lost":
        say(**failed, failure="an illegal address was accessed (CUDA_ERROR_ILLEGAL_ADDRESS)")
        sys.exit(3)
    elif fault == "watchdog":
        time.sleep(min(each, 0.2))
        say(**failed, failure=f"no answer after {each:g} s; the last kernel launched: {name.split()[0]}_{dtype}")
        sys.stdout.flush()
        os._exit(4)
    elif fault == "fail":
        say(**failed, failure="CUBLAS_STATUS_INVALID_VALUE")
    elif fault == "far":
        compared(name, dtype, error=1.0)


def check(args: argparse.Namespace) -> int:
    """Comparisons in f32 and bf16; a fault comes at the theme's first one in bf16."""
    themes = args.only.split(",") if args.only else list(THEMES)
    if any(faults().get(theme) == "open" for theme in themes):
        print("equipoise-gpu: cuda:0: no driver\n  a driver's help", file=sys.stderr)
        return 2
    opened()
    passed = True
    for theme in themes:
        for dtype in ("f32", "bf16"):
            for i, name in enumerate(THEMES[theme]):
                say(event="begin", name=name, dtype=dtype)
                fault = faults().get(theme, "")
                if dtype == "bf16" and i == 0 and fault:
                    print(f"{name} in {dtype}: it goes wrong by {FAULTS}={fault}", file=sys.stderr, flush=True)
                    wrong(fault, name, dtype, args.each_limit)
                    passed = False
                else:
                    compared(name, dtype)
    return 0 if passed else 1


def compared(name: str, dtype: str, error: float = 0.0) -> None:
    tolerance = 1e-4 if dtype == "f32" else 2e-2
    more = {"cpu_error": 0.0} if name.startswith("step ") and dtype == "bf16" else {}
    say(name=name, dtype=dtype, error=error, tolerance=tolerance, passed=error <= tolerance, **more)


def bench(args: argparse.Namespace) -> int:
    opened()
    if faults().get("bench") == "memory":
        print("equipoise-gpu: the GPU's memory is full", file=sys.stderr)
        return 3
    kept = (LAYERS if args.max_memory_mb is None else FITTING) if args.kept_layers == "auto" else int(args.kept_layers)
    asked = ("shape", "rows", "length", "quantization", "r", "steps")
    pieces = [
        {"part": part, "piece": piece, "kind": kind, "count": count, "seconds": seconds, "flop": flop, "bytes": moved}
        for part, piece, kind, count, seconds, flop, moved in PIECES
    ]
    say(
        **{name: getattr(args, name) for name in asked},
        kept_layers=kept,
        layers=LAYERS,
        tokens_per_second={"median": 1.0, "min": 1.0, "max": 1.0},
        step_seconds=1.0,
        profiled_step_seconds=1.0,
        peak_bytes=1,
        gemm_peak_flops=1.0,
        copy_peak_bytes_per_second=1.0,
        model_flops_per_token=1.0,
        share_of_gemm_peak=1.0,
        parts={"attention": 0.5, "frozen products": 0.5},
        profile=None if args.no_profile else {"step_seconds": 1.0, "pieces": pieces},
    )
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    subcommands = parser.add_subparsers(dest="command", required=True)
    check_parser, bench_parser = subcommands.add_parser("gpu-check"), subcommands.add_parser("gpu-bench")
    for subparser in (check_parser, bench_parser):
        subparser.add_argument("--json", action="store_true")
        subparser.add_argument("--device", default="cuda:0")
    check_parser.add_argument("--only")
    check_parser.add_argument("--small", action="store_true")
    check_parser.add_argument("--each-limit", type=float, default=20.0)
    bench_parser.add_argument("--shape", required=True)
    bench_parser.add_argument("--quantization", required=True)
    for name in ("--rows", "--length", "--r", "--warmup", "--steps"):
        bench_parser.add_argument(name, type=int, required=True)
    bench_parser.add_argument("--kept-layers", default="0")
    bench_parser.add_argument("--max-memory-mb", type=int)
    bench_parser.add_argument("--no-profile", action="store_true")
    bench_parser.add_argument("--offload", action="store_true")
    return parser.parse_args()


def main() -> None:
    args = parse()
    sys.exit(check(args) if args.command == "gpu-check" else bench(args))


if __name__ == "__main__":
    main()
