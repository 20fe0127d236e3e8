"""Reads what the two programs print: README.md has the contract. Forgiving about form, not about numbers."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

LARGEST_ERROR = {"f32": 1e-4, "bf16": 2e-2}
"""What issue and README ask for; a program that allows itself more does not pass by it."""
LARGEST_STEP_ERROR = 4e-2
"""Of a whole step in bf16, where roundings follow each other through all layers: see README.md."""
LISTS = ("checks", "benches", "results")
NUMBERS = (
    "step_seconds",
    "peak_bytes",
    "reserved_bytes",
    "gemm_peak_flops",
    "model_flops_per_token",
    "share_of_gemm_peak",
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


def checks(text: str) -> list[dict[str, Any]]:
    """The comparisons. `passed` is judged here: by the error, the program's tolerance, and the most that is allowed."""
    found = []
    for record in records(text):
        if "name" not in record or not {"error", "passed"} & record.keys():
            continue
        dtype, error = str(record.get("dtype", "?")), number(record.get("error"))
        told = number(record.get("tolerance"))
        largest = LARGEST_ERROR.get(dtype)
        if dtype == "bf16" and str(record["name"]).startswith("step "):
            largest = LARGEST_STEP_ERROR
        allowed = min((each for each in (told, largest) if each is not None), default=None)
        passed = record.get("passed", True) is True and None not in (error, allowed) and error <= allowed
        found.append({"name": record["name"], "dtype": dtype, "error": error, "tolerance": allowed, "passed": passed})
    return found


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
        found.append({**record, **good, "tokens_per_second": speed, "parts": seconds})
    return found


def curve(folder: Path) -> list[dict[str, float]]:
    """The steps of a run's metrics.jsonl, as far as it came. A skipped step has no numbers."""
    path = folder / "metrics.jsonl"
    lines = records(path.read_text()) if path.exists() else []
    return [
        {"step": line["step"], "loss": line.get("loss"), "cross_entropy": line.get("cross_entropy")}
        for line in lines
        if line.get("type") == "step"
    ]


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
