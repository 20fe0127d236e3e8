"""Reads what the two programs print: README.md has the contract. Forgiving about form, not about numbers."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

LARGEST_ERROR = {"f32": 1e-4, "bf16": 2e-2}
"""The most that README allows; a program that allows itself more does not pass by it."""
LARGEST_STEP_ERROR = {": loss": 1e-2, ": gradient": 5e-2, ": worst tensor": 6e-2}
"""Of a whole step in bf16, by the end of its name: roundings follow each other through all layers there."""
WITH_REFERENCE = ("step asft", 1.5)
"""Where the gradient is the difference of two that are rounded: beginnings of names, and how much wider these bounds are."""
LONGEST_TEXT = 1000
"""Characters of a failure that are kept."""
LISTS = ("checks", "benches", "results")
NUMBERS = (
    "step_seconds",
    "profiled_step_seconds",
    "peak_bytes",
    "reserved_bytes",
    "gemm_peak_flops",
    "copy_peak_bytes_per_second",
    "model_flops_per_token",
    "share_of_gemm_peak",
    "kept_layers",
    "layers",
    "loss",
)
"""Of a measurement: null where they are no numbers."""


def parsed(text: str) -> Any:
    """A JSON value; NaN and the infinities, which JSON has not, become null."""
    return json.loads(text, parse_constant=lambda _: None)


def records(text: str) -> list[dict[str, Any]]:
    """All objects: one JSON value, or one a line; lists, and objects that hold a list of them, are opened."""
    try:
        return opened(parsed(text))
    except ValueError:
        pass
    found = []
    for line in text.splitlines():
        try:
            found += opened(parsed(line))
        except ValueError:
            continue
    return found


def opened(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, list):
        return [each for part in value for each in opened(part)]
    if not isinstance(value, dict):
        return []
    inner = [each for name in LISTS if isinstance(value.get(name), list) for each in opened(value[name])]
    return inner or [value]


def number(value: Any) -> float | None:
    """A finite number; None of all else, NaN among it."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None


# --- comparisons


def is_step(check: dict[str, Any]) -> bool:
    """Whether a comparison is one of whole steps."""
    return str(check["name"]).startswith("step ")


def largest(name: str, dtype: str) -> float | None:
    """The most that a comparison may be off, whatever the program allows itself."""
    if dtype == "bf16" and is_step({"name": name}):
        limits = (limit for end, limit in LARGEST_STEP_ERROR.items() if name.endswith(end))
        wider = WITH_REFERENCE[1] if name.startswith(WITH_REFERENCE[0]) else 1.0
        return wider * next(limits, max(LARGEST_STEP_ERROR.values()))
    return LARGEST_ERROR.get(dtype)


def is_check(record: dict[str, Any]) -> bool:
    return "name" in record and bool({"error", "passed"} & record.keys())


def checks(text: str) -> list[dict[str, Any]]:
    """The comparisons. `passed` is judged here: by the error, the program's tolerance, and the most that is allowed."""
    return [checked(record) for record in records(text) if is_check(record)]


def checked(record: dict[str, Any]) -> dict[str, Any]:
    name, dtype, error = str(record["name"]), str(record.get("dtype", "?")), number(record.get("error"))
    limits = (number(record.get("tolerance")), largest(name, dtype))
    allowed = min((each for each in limits if each is not None), default=None)
    passed = record.get("passed", True) is True and error is not None and allowed is not None and error <= allowed
    found = {"name": name, "dtype": dtype, "error": error, "tolerance": allowed, "passed": passed}
    if "cpu_error" in record:
        found["cpu_error"] = number(record["cpu_error"])
    if record.get("failure"):
        found["failure"] = str(record["failure"])[:LONGEST_TEXT]
    return found


def unanswered(text: str) -> dict[str, Any] | None:
    """The comparison that was begun last, if no result came after it."""
    begun = None
    for record in records(text):
        if record.get("event") == "begin":
            begun = record
        elif is_check(record):
            begun = None
    return begun


def open_event(text: str) -> dict[str, Any] | None:
    """What the program said when it had opened the GPU."""
    return next((record for record in records(text) if record.get("event") == "opened"), None)


# --- measurements


def benches(text: str) -> list[dict[str, Any]]:
    """The measurements, each with `tokens_per_second` as median, min and max."""
    found = []
    for record in records(text):
        speed = record.get("tokens_per_second")
        speed = speed if isinstance(speed, dict) else dict.fromkeys(("median", "min", "max"), speed)
        if any(not number(speed.get(name)) for name in ("median", "min", "max")):
            continue
        parts = record.get("parts") if isinstance(record.get("parts"), dict) else {}
        good = {name: number(record[name]) for name in NUMBERS if name in record}
        seconds = {name: value for name, value in parts.items() if number(value) is not None}
        good |= {"tokens_per_second": speed, "parts": seconds, "profile": profile(record.get("profile"))}
        found.append({**record, **good})
    return found


def profile(value: Any) -> dict[str, Any] | None:
    """A step piece by piece; pieces without a time are left out."""
    if not isinstance(value, dict) or not isinstance(value.get("pieces"), list):
        return None
    pieces = []
    for piece in value["pieces"]:
        if isinstance(piece, dict) and number(piece.get("seconds")) is not None:
            words = {name: str(piece.get(name, "?")) for name in ("part", "piece", "kind")}
            pieces.append(words | {name: number(piece.get(name)) for name in ("count", "seconds", "flop", "bytes")})
    return {"step_seconds": number(value.get("step_seconds")), "pieces": pieces} if pieces else None


# --- trainings


def metrics(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The lines of one type of a run's metrics.jsonl, as far as it came."""
    path = folder / "metrics.jsonl"
    lines = records(path.read_text()) if path.exists() else []
    return [line for line in lines if line.get("type") == kind]


def curve(folder: Path) -> list[dict[str, float]]:
    """The steps of a run, `loss` the objective's. A skipped step has no numbers."""
    keys = {"step": "step", "loss": "objective_loss", "cross_entropy": "cross_entropy"}
    return [{name: line.get(key, line.get(name)) for name, key in keys.items()} for line in metrics(folder, "step")]


def validations(folder: Path) -> dict[int, dict[str, float | None]]:
    """Loss (cross-entropy) and token accuracy of the validation rows, by step; 0 is before training."""
    keys = {"loss": "cross_entropy", "token_accuracy": "token_accuracy"}
    return {
        line["step"]: {name: number(line.get(key, line.get(name))) for name, key in keys.items()}
        for line in metrics(folder, "validation")
    }


def compared(ours: list[dict[str, float]], reference: list[dict[str, float]], wanted: int) -> dict[str, Any]:
    """Two curves: the largest and the mean relative difference, and whether both have all steps that were asked for."""
    steps = {line["step"]: line for line in reference}
    pairs = [(line, steps[line["step"]]) for line in ours if line["step"] in steps]
    result: dict[str, Any] = {"steps": len(pairs), "complete": len(pairs) >= wanted}
    for name in ("loss", "cross_entropy"):
        numbers = [(number(a[name]), number(b[name])) for a, b in pairs]
        apart = [
            abs(a - b) / abs(b) if a is not None and b else math.inf  # NaN on either side is no agreement
            for a, b in numbers
        ]
        finite = bool(apart) and math.isfinite(max(apart))
        result[name] = {"max": max(apart), "mean": statistics.fmean(apart)} if finite else None
    return result
