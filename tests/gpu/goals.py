"""The goals, out of the numbers of results.json. It measures nothing."""

import statistics
from collections.abc import Iterator
from typing import Any

import commands
import reading

SPEED_GOAL, MEMORY_GOAL, SHARE_GOAL = 1.5, commands.MEMORY_SHARE, 0.45
LONG_BYTES = 12e9
LOSS_GOAL = 0.01
PEAKS = ("peak_bytes", "reserved_bytes", "device_bytes")
HEADLINE = (2, 2048, "q4_k")
LONG = (1, 8192, "q4_k")
NAMES = ("rows", "length", "quantization", "variant", "date")
"""What tells our measurements apart."""

Run = dict[str, Any]


# --- measurements of the same thing, taken together


def merged(runs: list[Run]) -> Run:
    """One measurement of several of the same: the median of medians, the least, the most; the highest peaks."""
    speeds = [run["tokens_per_second"] for run in runs]
    return {
        **runs[-1],
        **{name: max(known(runs, name), default=None) for name in PEAKS},
        "tokens_per_second": {
            "median": statistics.median(speed["median"] for speed in speeds),
            "min": min(speed["min"] for speed in speeds),
            "max": max(speed["max"] for speed in speeds),
        },
        "times": len(runs),
    }


def known(runs: list[Run], name: str) -> list[Any]:
    return [run[name] for run in runs if run.get(name) is not None]


def grouped(runs: list[Run], names: tuple[str, ...]) -> list[Run]:
    """The measurements; those of the same thing as one."""
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(run.get(name) for name in names), []).append(run)
    return [merged(group) for group in groups.values()]


def part(results: dict[str, Any], name: str) -> dict[str, Any]:
    """A part of the results; empty where it was not run."""
    return results["parts"].get(name, {})


def ours(results: dict[str, Any]) -> list[Run]:
    """Our measurements, those beside the peer among them. A glance is not: it is too short."""
    runs = [*part(results, "bench").get("runs", []), *part(results, "peer").get("ours", [])]
    return grouped(runs, NAMES)


def theirs(results: dict[str, Any]) -> list[Run]:
    return grouped(part(results, "peer").get("runs", []), ("rows", "length", "mode"))


def best_peer(results: dict[str, Any], rows: int, length: int) -> tuple[Run, Run] | None:
    """The peer's fastest mode of a shape, and its smallest: each is what we are held against."""
    found = [run for run in theirs(results) if (run["rows"], run["length"]) == (rows, length)]
    if not found:
        return None
    return max(found, key=speed), min(found, key=lambda run: run.get("peak_bytes") or float("inf"))


def speed(run: Run) -> float:
    return run["tokens_per_second"]["median"]


def of(results: dict[str, Any], key: tuple[int, int, str]) -> dict[str, Run]:
    """Our measurements of one shape by variant: those of the peer's call if there are any, else the latest."""
    runs = [run for run in ours(results) if (run["rows"], run["length"], run["quantization"]) == key]
    date = part(results, "peer").get("date", "")
    beside = [run for run in runs if run["date"] == date]
    return {run["variant"]: run for run in sorted(beside or runs, key=lambda run: run["date"])}


def headline(results: dict[str, Any]) -> Run | None:
    """The measurement that the goals are judged on: the one within a share of the peer's memory, else nothing kept."""
    found = of(results, HEADLINE)
    return found.get("fitting") or found.get("none")


def label(run: Run) -> str:
    """Of how many layers the activations were kept."""
    kept, layers = run.get("kept_layers"), run.get("layers")
    count = "?" if kept is None else f"{kept:.0f}"
    if run.get("variant") == "none":
        return "kept 0"
    of_all = f" of {layers:.0f}" if layers is not None else ""
    return f"kept {count}{of_all}" + (f" within {MEMORY_GOAL:g}x" if run.get("variant") == "fitting" else "")


def gemm_peak(results: dict[str, Any]) -> float | None:
    """FLOP a second: the highest that either side measured."""
    found = known(ours(results), "gemm_peak_flops")
    peer = part(results, "peer").get("gemm", {}).get("flops")
    return max([*found, *([peer] if peer else [])], default=None)


def share(results: dict[str, Any], run: Run) -> float | None:
    """FLOP that the step needs, over its time, over the GEMM peak."""
    peak, flops = gemm_peak(results), run.get("model_flops_per_token")
    return speed(run) * flops / peak if peak and flops else None


# --- goals


def goal(name: str, value: Any, text: str, met: bool | None, why: str = "") -> dict[str, Any]:
    return {"goal": name, "value": value, "text": text, "met": met, "why": why}


def unknown(name: str, why: str) -> dict[str, Any]:
    return goal(name, None, "–", None, why)


def judge(results: dict[str, Any]) -> None:
    """Puts `goals` into the results. `met` is null where it is not known."""
    bench = (*against_peer(results), share_goal(results), long_goal(results))
    results["goals"] = [*comparisons(results), *bench, *losses(results)]


def comparisons(results: dict[str, Any]) -> Iterator[dict[str, Any]]:
    found = part(results, "check")
    limits = reading.LARGEST_STEP_ERROR.values()
    steps = (
        "whole steps in bf16, by the CPU's own error in bf16;"
        " never above {:g} of losses, {:g} of the gradient, {:g} of its worst tensor; {:g} times that with a reference"
    )
    for name, dtype, kinds in (
        ("comparisons in f32 within 1e-4", "f32", (True, False)),
        ("operations in bf16 within 2e-2", "bf16", (False,)),
        (steps.format(*limits, reading.WITH_REFERENCE[1]), "bf16", (True,)),
    ):
        checks = [
            check for check in found.get("checks", []) if check["dtype"] == dtype and reading.is_step(check) in kinds
        ]
        passed = sum(check["passed"] for check in checks)
        if not checks:
            yield unknown(name, "not run")
            continue
        met, why = (True, "") if found.get("complete") else (None, "not all ran")
        met = met if passed == len(checks) else False
        yield goal(name, passed / len(checks), f"{passed} of {len(checks)}", met, why)


def against_peer(results: dict[str, Any]) -> Iterator[dict[str, Any]]:
    speed_name = f"2x2048 q4_k: at least {SPEED_GOAL:g}x the tokens/s of PEFT + bitsandbytes"
    memory_name = f"2x2048 q4_k: at most {MEMORY_GOAL:g}x its peak memory"
    run, peers = headline(results), best_peer(results, *HEADLINE[:2])
    if run is None or peers is None:
        why = "ours was not measured" if run is None else "the peer was not measured"
        yield from (unknown(name, why) for name in (speed_name, memory_name))
        return
    if run["date"] != part(results, "peer")["date"]:
        yield from (unknown(name, "not in the same call") for name in (speed_name, memory_name))
        return
    ratio, which = speed(run) / speed(peers[0]), label(run)
    yield goal(speed_name, ratio, f"{ratio:.2f}x", ratio >= SPEED_GOAL, which)
    ratios = memory_ratios(run, peers[1])
    if not ratios:
        yield unknown(memory_name, "no peak was measured on both sides")
        return
    text = ", ".join(f"{value:.2f}x {name}" for name, value in ratios.items())
    worst = max(ratios.values())
    yield goal(memory_name, worst, text, worst <= MEMORY_GOAL, f"{which}; the higher ratio counts")


def memory_ratios(run: Run, peer: Run) -> dict[str, float]:
    """By the programs' own count and by the driver's, where both sides have it."""
    names = {"peak_bytes": "in tensors", "device_bytes": "on the device"}
    return {text: run[name] / peer[name] for name, text in names.items() if run.get(name) and peer.get(name)}


def share_goal(results: dict[str, Any]) -> dict[str, Any]:
    name, run = f"2x2048 q4_k: at least {SHARE_GOAL:.0%} of the GEMM peak", headline(results)
    value = share(results, run) if run else None
    if run is None or value is None:
        return unknown(name, "not measured")
    return goal(name, value, f"{value:.1%}", value >= SHARE_GOAL, label(run))


def long_goal(results: dict[str, Any]) -> dict[str, Any]:
    name, run = "1x8192 q4_k within 12 GB", of(results, LONG).get("none")
    found = [run[key] for key in ("peak_bytes", "device_bytes") if run.get(key)] if run else []
    if not found:
        return unknown(name, "not measured")
    most = max(found)
    return goal(name, most, f"{most / 1e9:.2f} GB", most <= LONG_BYTES, "kept 0; the higher of both counts")


def losses(results: dict[str, Any]) -> Iterator[dict[str, Any]]:
    train = part(results, "train")
    for recipe in ("quickstart", "smollm2-135m-bft"):
        name = f"{recipe}: loss curve within {LOSS_GOAL:.0%} of the CPU's"
        found = [run for run in train.get("runs", []) if run["recipe"] == recipe]
        if not found:
            yield unknown(name, "not run")
            continue
        layers = commands.first_layers(train.get("model")) if recipe.startswith("smollm2") else None
        about = [f"the first {layers} layers only"] if layers else []
        none = [no_steps(run) for run in found if not run["steps"]]
        run_both = [run for run in found if run["steps"]]
        if not run_both:
            yield unknown(name, "; ".join([*about, *none]))
            continue
        apart = [run[key]["max"] if run[key] else None for run in run_both for key in ("loss", "cross_entropy")]
        if None in apart:
            yield goal(name, None, "no numbers", False, "; ".join(about))
            continue
        whole = all(run["complete"] for run in found)
        met = (True if whole else None) if max(apart) <= LOSS_GOAL else False
        why = "; ".join([*about, *none, *([] if whole or none else ["not all steps were run"])])
        yield goal(name, max(apart), f"{max(apart):.3%} apart at most", met, why)


def no_steps(run: Run) -> str:
    """Why two curves cannot be compared."""
    if not run["reference"]:
        return "the CPU ran no step"
    return f"{run['device']} in {run['compute']} ran no step" if not run["curve"] else "no step in common"


def all_met(results: dict[str, Any], may_be_unknown: bool) -> bool:
    return all(each["met"] or (may_be_unknown and each["met"] is None) for each in results["goals"])
