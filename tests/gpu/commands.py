"""The command lines of all parts, and how long each part may take."""

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PARTS = ("check", "glance", "bench", "peer", "train", "evidence")
DEFAULT = ("check", "bench", "peer", "train")
LIMITS = {"check": 150.0, "glance": 45.0, "bench": 150.0, "peer": 145.0, "train": 120.0, "evidence": 170.0}
"""Seconds that a part may take at most; what is left of the whole call's time limits it too."""
THEMES = {"rows": 20.0, "linear": 30.0, "attention": 20.0, "head": 25.0, "optimizer": 10.0, "steps": 35.0}
"""Seconds of each process of `check`. The first one also reads CUDA's libraries from a cold disk."""
EACH_LIMIT = 15.0
"""Seconds of one comparison, after which the program itself says what hangs."""
RERUN_LIMIT = 60.0
"""Seconds of a theme that is run again under a tool."""
STANDIN_LIMIT, HOST_LIMIT = 2.0, 120.0
"""Seconds of each of those processes in a dry run: with the stand-in, and with the program's kernels on the CPU."""
MEMCHECK_CODE = 86
"""The exit code of compute-sanitizer where it found something."""
BENCH_LIMIT = 45.0
"""Seconds of one measurement."""
PEER_LIMIT = 95.0
"""Seconds of the peer's process; the rest of its part is for our measurements after it."""
REFERENCE_LIMITS = {"quickstart": 20.0, "smollm2-135m-bft": 50.0}
"""Seconds of a training on the CPU, which the others are held against."""
TRAIN_LIMITS = {"quickstart": 20.0, "smollm2-135m-bft": 25.0}
"""Seconds of each of the others."""
EVIDENCE_LIMIT = 50.0
"""Seconds of one training of `evidence`."""
RANK = 16
MEMORY_SHARE = 0.7
"""Of the peer's peak: what one of our measurements may take."""
OBJECTIVES, SEEDS = ("sft", "dft", "bft"), (1, 2)
MODEL = "smollm2-135m-instruct-gguf/SmolLM2-135M-Instruct.Q4_1.gguf"
PEER_NEEDS = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")
PEER_SHAPES = ((2, 2048), (1, 4096), (1, 8192))


@dataclass(frozen=True)
class Measurement:
    """What one process of gpu-bench measures."""

    rows: int
    length: int
    quantization: str
    kept: str = "0"
    """Layers whose activations are kept: 0, or `auto`."""
    max_memory_mb: int | None = None

    @property
    def variant(self) -> str:
        """`none`, `auto`, or `fitting` (auto, within a share of the peer's memory)."""
        if self.kept == "0":
            return "none"
        return "auto" if self.max_memory_mb is None else "fitting"

    def __str__(self) -> str:
        limit = f" within {self.max_memory_mb} MiB" if self.max_memory_mb else ""
        return f"{self.rows}x{self.length} {self.quantization}, kept layers {self.kept}{limit}"


HEADLINE = Measurement(2, 2048, "q4_k")
KEPT = Measurement(2, 2048, "q4_k", "auto")
MEASUREMENTS = (
    HEADLINE,
    KEPT,
    Measurement(1, 8192, "q4_k"),
    Measurement(1, 4096, "q4_k"),
    Measurement(2, 2048, "q8_0"),
    Measurement(1, 4096, "q8_0"),
    Measurement(1, 8192, "q8_0"),
)
"""In this order: where time is short, the last ones are left out."""


def measurements(args: argparse.Namespace) -> tuple[Measurement, ...]:
    """What `bench` measures; in a dry run the first shape only."""
    return MEASUREMENTS[:2] if args.dry_run else MEASUREMENTS


def host_words(args: argparse.Namespace) -> list[str]:
    """In a dry run with the program itself: its kernels on the CPU."""
    return ["--device", "host"] if args.host else []


def each_limit(limit: float) -> float:
    """Seconds of one comparison in a theme with this limit."""
    return min(EACH_LIMIT, 0.8 * limit)


def check_command(args: argparse.Namespace, theme: str, each: float, small: bool = False) -> list[str | Path]:
    words = ["--only", theme, "--each-limit", f"{max(each, 1):.0f}", *(["--small"] if small else [])]
    return [*args.gpu_binary, "gpu-check", "--json", *words, *host_words(args)]


def memcheck(sanitizer: str) -> list[str | Path]:
    """compute-sanitizer for the command that follows. Failed calls are left to the program: only accesses count."""
    about = ["--tool", "memcheck", "--error-exitcode", str(MEMCHECK_CODE)]
    return [sanitizer, *about, "--report-api-errors", "no", "--show-backtrace", "device", "--print-limit", "3"]


def shape(args: argparse.Namespace, what: Measurement) -> tuple[str, int, int]:
    """The model, rows and length that are measured; on the CPU they are small."""
    return ("tiny", 2, 48) if args.host else ("llama-8b", what.rows, what.length)


def bench_command(args: argparse.Namespace, what: Measurement, glance: bool = False) -> list[str | Path]:
    name, rows, length = shape(args, what)
    words = ["--shape", name, "--rows", str(rows), "--length", str(length)]
    words += ["--quantization", what.quantization, "--r", str(RANK)]
    short = glance or args.host
    words += ["--warmup", "1" if short else "2", "--steps", "2" if glance else str(args.steps)]
    words += ["--kept-layers", what.kept]
    if what.max_memory_mb is not None:
        words += ["--max-memory-mb", str(what.max_memory_mb)]
    return [*args.gpu_binary, "gpu-bench", "--json", *words, *host_words(args)]


def peer_command(args: argparse.Namespace) -> list[str | Path]:
    shapes = ",".join(f"{rows}x{length}" for rows, length in PEER_SHAPES)
    what = ["--toy"] if args.dry_run else ["--shapes", shapes]
    return [args.python, HERE / "peer_peft_bnb.py", *what, "--rank", str(RANK), "--steps", str(args.steps)]


def equipoise_train(args: argparse.Namespace, recipe: str, sets: dict[str, object]) -> list[str | Path]:
    """`equipoise train`, with values in place of the recipe's."""
    if recipe.startswith("smollm2"):
        sets = {"base.model": args.model, **sets}
    always = {"training.eval_steps": 0, "training.save_steps": 0, "data.cache": "off"}
    words = [word for key, value in {**always, **sets}.items() for word in ("--set", f"{key}={value}")]
    return [args.binary, "train", ROOT / "recipes" / f"{recipe}.yaml", *words, "--overwrite", "--offline", "--quiet"]


def train_command(args: argparse.Namespace, recipe: str, device: str, compute: str, folder: Path) -> list[str | Path]:
    sets = {
        "device": device,
        "compute": compute,
        "output_dir": folder,
        "training.max_steps": args.train_steps,
        "data.validation": "null",
    }
    return equipoise_train(args, recipe, sets)


def train_runs(args: argparse.Namespace) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Each recipe with devices and types; the first one, f32 on the CPU, is what the others are held against."""
    others = [("cpu", "f32")] if args.dry_run else [("cuda:0", "f32"), ("cuda:0", "bf16")]
    for recipe in ("quickstart", *(["smollm2-135m-bft"] if args.model else [])):
        yield recipe, [("cpu", "f32"), *others]


def evidence_command(args: argparse.Namespace, objective: str, seed: int, folder: Path) -> list[str | Path]:
    """The recipe, but for these: its 16 rows of a step go through the model at once."""
    sets = {
        "device": "cpu" if args.dry_run else "cuda:0",
        "compute": "f32" if args.dry_run else "bf16",
        "output_dir": folder,
        "objective.type": objective,
        "training.seed": seed,
        "training.max_steps": args.evidence_steps,
        "training.micro_batch_size": 16,
        "training.gradient_accumulation_steps": 1,
    }
    return equipoise_train(args, evidence_recipe(args), sets)


def evidence_recipe(args: argparse.Namespace) -> str:
    return "quickstart" if args.dry_run else "smollm2-135m-bft"


def first_layers(model: str | None) -> int | None:
    """Of a model that was cut: how many layers are left, by its name. None for a whole one."""
    found = re.search(r"-first-(\d+)-layers", model or "")
    return int(found[1]) if found else None
