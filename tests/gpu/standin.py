#!/usr/bin/env python3
"""Stands in for equipoise-gpu in a dry run: prints what README.md asks of it, with numbers that measure nothing."""

import argparse
import json


def check() -> None:
    """A comparison that passes, one that does not, and one that came to no number."""
    for name, dtype, error in (("rms_norm", "f32", 0.0), ("attention", "bf16", 1.0), ("step sft q4_k", "bf16", None)):
        tolerance = 1e-4 if dtype == "f32" else 2e-2
        passed = error is not None and error <= tolerance
        print(json.dumps({"name": name, "dtype": dtype, "error": error, "tolerance": tolerance, "passed": passed}))


def bench(args: argparse.Namespace) -> None:
    print(
        json.dumps(
            {
                "shape": args.shape,
                "rows": args.rows,
                "length": args.length,
                "quantization": args.quantization,
                "r": args.r,
                "steps": args.steps,
                "tokens_per_second": {"median": 1.0, "min": 1.0, "max": 1.0},
                "step_seconds": 1.0,
                "peak_bytes": 1,
                "gemm_peak_flops": 1.0,
                "model_flops_per_token": 1.0,
                "share_of_gemm_peak": 1.0,
                "parts": {"attention": 0.5, "frozen products": 0.5},
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("gpu-check").add_argument("--json", action="store_true")
    run = commands.add_parser("gpu-bench")
    run.add_argument("--json", action="store_true")
    run.add_argument("--shape", required=True)
    run.add_argument("--quantization", required=True)
    for name in ("--rows", "--length", "--r", "--warmup", "--steps"):
        run.add_argument(name, type=int, required=True)
    args = parser.parse_args()
    if args.command == "gpu-check":
        check()
    else:
        bench(args)


if __name__ == "__main__":
    main()
