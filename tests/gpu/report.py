"""The goals and the table, out of the numbers of results.json. It measures nothing."""

import statistics
from collections.abc import Iterator
from typing import Any

GIB = 2**30
SPEED_GOAL, MEMORY_GOAL, SHARE_GOAL = 1.5, 0.7, 0.45
LONG_BYTES = 12e9
LOSS_GOAL = 0.01
PEAKS = ("peak_bytes", "reserved_bytes", "device_bytes")
HEADLINE = (2, 2048, "q4_k")
LONG = (1, 8192, "q4_k")

Key = tuple[int, int, str]


# --- measurements of the same thing, taken together


def merged(runs: list[dict[str, Any]]) -> dict[str, Any]:
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


def known(runs: list[dict[str, Any]], name: str) -> list[Any]:
    return [run[name] for run in runs if run.get(name) is not None]


def grouped(results: dict[str, Any], part: str, names: tuple[str, ...]) -> dict[Any, dict[str, Any]]:
    """The part's measurements, by what they measured."""
    groups: dict[Any, list[dict[str, Any]]] = {}
    for run in results["parts"].get(part, {}).get("runs", []):
        groups.setdefault(tuple(run.get(name) for name in names), []).append(run)
    return {key: merged(runs) for key, runs in groups.items()}


def ours(results: dict[str, Any]) -> dict[Key, dict[str, Any]]:
    return grouped(results, "bench", ("rows", "length", "quantization"))


def theirs(results: dict[str, Any]) -> dict[tuple[int, int, str], dict[str, Any]]:
    return grouped(results, "peer", ("rows", "length", "mode"))


def best_peer(results: dict[str, Any], rows: int, length: int) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The peer's fastest mode of a shape, and its smallest: each is what we are held against."""
    found = [run for (r, n, _), run in theirs(results).items() if (r, n) == (rows, length)]
    if not found:
        return None
    return max(found, key=speed), min(found, key=lambda run: run.get("peak_bytes") or float("inf"))


def speed(run: dict[str, Any]) -> float:
    return run["tokens_per_second"]["median"]


def gemm_peak(results: dict[str, Any]) -> float | None:
    """FLOP a second: the highest that either side measured."""
    found = known(list(ours(results).values()), "gemm_peak_flops")
    peer = results["parts"].get("peer", {}).get("gemm", {}).get("flops")
    return max([*found, *([peer] if peer else [])], default=None)


def share(results: dict[str, Any], run: dict[str, Any]) -> float | None:
    """FLOP that the step needs, over its time, over the GEMM peak."""
    peak, flops = gemm_peak(results), run.get("model_flops_per_token")
    return speed(run) * flops / peak if peak and flops else None


# --- goals


def goal(name: str, value: Any, text: str, met: bool | None, why: str = "") -> dict[str, Any]:
    return {"goal": name, "value": value, "text": text, "met": met, "why": why}


def unknown(name: str, why: str) -> dict[str, Any]:
    return goal(name, None, "–", None, why)


def judge(results: dict[str, Any]) -> None:
    """Puts `goals` into the results. `met` is null where it could not be told."""
    bench = (*against_peer(results), share_goal(results), long_goal(results))
    results["goals"] = [*comparisons(results), *bench, *losses(results)]


def comparisons(results: dict[str, Any]) -> Iterator[dict[str, Any]]:
    part = results["parts"].get("check", {})
    for name, dtype, kinds in (
        ("comparisons in f32 within 1e-4", "f32", (True, False)),
        ("operations in bf16 within 2e-2", "bf16", (False,)),
        ("whole steps in bf16: 5e-3 of losses, 3e-2 of the gradient, 4e-2 of its worst tensor", "bf16", (True,)),
    ):
        checks = [
            check
            for check in part.get("checks", [])
            if check["dtype"] == dtype and str(check["name"]).startswith("step ") in kinds
        ]
        passed = sum(check["passed"] for check in checks)
        if not checks:
            yield unknown(name, "not run")
            continue
        met, why = (True, "") if part.get("complete") else (None, "not all ran")
        met = met if passed == len(checks) else False
        yield goal(name, passed / len(checks), f"{passed} of {len(checks)}", met, why)


def against_peer(results: dict[str, Any]) -> Iterator[dict[str, Any]]:
    speed_name = f"2x2048 q4_k: at least {SPEED_GOAL:g}x the tokens/s of PEFT + bitsandbytes"
    memory_name = f"2x2048 q4_k: at most {MEMORY_GOAL:g}x its peak memory"
    run, peers = ours(results).get(HEADLINE), best_peer(results, *HEADLINE[:2])
    if run is None or peers is None:
        why = "ours was not measured" if run is None else "the peer was not measured"
        yield from (unknown(name, why) for name in (speed_name, memory_name))
        return
    if results["parts"]["bench"]["date"] != results["parts"]["peer"]["date"]:
        yield from (unknown(name, "not in the same call") for name in (speed_name, memory_name))
        return
    ratio = speed(run) / speed(peers[0])
    yield goal(speed_name, ratio, f"{ratio:.2f}x", ratio >= SPEED_GOAL)
    ratios = memory_ratios(run, peers[1])
    if not ratios:
        yield unknown(memory_name, "no peak was told")
        return
    text = ", ".join(f"{value:.2f}x {name}" for name, value in ratios.items())
    worst = max(ratios.values())
    yield goal(memory_name, worst, text, worst <= MEMORY_GOAL, "the higher ratio counts")


def memory_ratios(run: dict[str, Any], peer: dict[str, Any]) -> dict[str, float]:
    """By the programs' own count and by the driver's, where both sides have it."""
    names = {"peak_bytes": "in tensors", "device_bytes": "on the device"}
    return {text: run[name] / peer[name] for name, text in names.items() if run.get(name) and peer.get(name)}


def share_goal(results: dict[str, Any]) -> dict[str, Any]:
    name, run = f"2x2048 q4_k: at least {SHARE_GOAL:.0%} of the GEMM peak", ours(results).get(HEADLINE)
    value = share(results, run) if run else None
    return unknown(name, "not measured") if value is None else goal(name, value, f"{value:.1%}", value >= SHARE_GOAL)


def long_goal(results: dict[str, Any]) -> dict[str, Any]:
    name, run = "1x8192 q4_k within 12 GB", ours(results).get(LONG)
    found = [run[key] for key in ("peak_bytes", "device_bytes") if run.get(key)] if run else []
    if not found:
        return unknown(name, "not measured")
    most = max(found)
    return goal(name, most, f"{most / 1e9:.2f} GB", most <= LONG_BYTES, "the higher of both counts")


def losses(results: dict[str, Any]) -> Iterator[dict[str, Any]]:
    runs = results["parts"].get("train", {}).get("runs", [])
    for recipe in ("quickstart", "smollm2-135m-bft"):
        name = f"{recipe}: loss curve within {LOSS_GOAL:.0%} of the CPU's"
        found = [run for run in runs if run["recipe"] == recipe]
        if not found:
            yield unknown(name, "not run")
            continue
        apart = [run[key]["max"] if run[key] else None for run in found for key in ("loss", "cross_entropy")]
        if None in apart:
            yield goal(name, None, "no numbers", False)
            continue
        met, why = (True, "") if all(run["complete"] for run in found) else (None, "not all steps were run")
        met = met if max(apart) <= LOSS_GOAL else False
        yield goal(name, max(apart), f"{max(apart):.3%} apart at most", met, why)


def all_met(results: dict[str, Any], may_be_unknown: bool) -> bool:
    return all(each["met"] or (may_be_unknown and each["met"] is None) for each in results["goals"])


# --- Markdown


def row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |\n"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table, its first column to the left and all others to the right."""
    return row(head) + row(["---"] + ["---:"] * (len(head) - 1)) + "".join(row(cells) for cells in rows)


def memory(run: dict[str, Any], name: str) -> str:
    return f"{run[name] / GIB:.2f}" if run.get(name) else "–"


def rates(run: dict[str, Any]) -> str:
    found = run["tokens_per_second"]
    return f"{found['median']:.0f} ({found['min']:.0f}–{found['max']:.0f})"


VERDICTS = {True: "met", False: "**not met**", None: "not known"}


def goals_table(results: dict[str, Any]) -> str:
    rows = []
    for each in results["goals"]:
        verdict = VERDICTS[each["met"]] + (f" ({each['why']})" if each["why"] else "")
        rows.append([each["goal"], each["text"], verdict])
    return table(["goal", "found", "verdict"], rows)


def speed_table(results: dict[str, Any]) -> str:
    """Both sides, shape by shape."""
    sides = [("Equipoise", key, run) for key, run in ours(results).items()]
    sides += [("PEFT + bitsandbytes", key, run) for key, run in theirs(results).items()]
    sides.sort(key=lambda side: (side[1][1], side[0]))
    peaks = ["peak GiB", "reserved", "on the device"]
    head = ["", "rows x length", "tokens/s (min–max)", *peaks, "of GEMM peak", "first loss"]
    rows = []
    for side, (count, length, kind), run in sides:
        part = share(results, run)
        shown = f"{part:.1%}" if part is not None else "–"
        loss = f"{run['loss']:.3f}" if run.get("loss") is not None else "–"
        peaks = [memory(run, name) for name in ("peak_bytes", "reserved_bytes", "device_bytes")]
        rows.append([f"{side} {kind}", f"{count}x{length}", rates(run), *peaks, shown, loss])
    return table(head, rows) if rows else ""


def time_table(results: dict[str, Any]) -> str:
    """Where the time of a step goes, on our side."""
    runs = {key: run for key, run in ours(results).items() if run.get("parts")}
    names = list(dict.fromkeys(name for run in runs.values() for name in run["parts"]))
    rows = []
    for (count, length, kind), run in runs.items():
        total = run.get("step_seconds") or sum(run["parts"].values())
        rows.append([f"{count}x{length} {kind}", f"{total * 1e3:.1f} ms"])
        rows[-1] += [f"{run['parts'][name] / total:.1%}" if name in run["parts"] else "–" for name in names]
    return table(["", "step", *names], rows) if rows else ""


def checks_table(results: dict[str, Any]) -> str:
    checks = results["parts"].get("check", {}).get("checks", [])
    rows = []
    for check in sorted(checks, key=lambda check: check["passed"]):
        error = f"{check['error']:.1e}" if check["error"] is not None else "none"
        allowed = f"{check['tolerance']:.1e}" if check["tolerance"] is not None else "?"
        rows.append([check["name"], check["dtype"], error, allowed, "passed" if check["passed"] else "**failed**"])
    return table(["comparison with the CPU", "type", "error", "allowed", ""], rows) if rows else ""


def train_table(results: dict[str, Any]) -> str:
    rows = []
    for run in results["parts"].get("train", {}).get("runs", []):
        curves = (run["loss"], run["cross_entropy"])
        apart = [f"{found['max']:.3%} / {found['mean']:.3%}" if found else "–" for found in curves]
        rows.append([run["recipe"], f"{run['device']} {run['compute']}", str(run["steps"]), *apart])
    head = ["recipe", "against cpu f32", "steps", "loss apart, most / mean", "cross-entropy apart, most / mean"]
    return table(head, rows) if rows else ""


def setting(results: dict[str, Any]) -> str:
    here, peer = results["machine"], results["parts"].get("peer", {})
    total = f", {here['gpu_bytes'] / GIB:.1f} GiB" if here["gpu_bytes"] else ""
    lines = [
        f"GPU: {here['gpu'] or 'none'}{total}; driver {here['driver'] or 'none'}",
        f"Machine: {here['cpu']}, {here['cores']} cores; {here['system']}",
    ]
    if "start" in peer:
        names = ("python", "torch", "cuda", "transformers", "peft", "bitsandbytes", "accelerate")
        lines.append("The peer: " + ", ".join(f"{name} {peer['start'].get(name)}" for name in names))
    if peak := gemm_peak(results):
        lines.append(f"bf16 GEMM peak: {peak / 1e12:.1f} TFLOP/s")
    for name, part in results["parts"].items():
        lines.append(", ".join(filter(None, (f"`{name}`: {part['date']}", part["version"], f"by `{part['command']}`"))))
    return "".join(f"- {line}\n" for line in lines)


TITLE = """# Equipoise on one GPU

Written by `run.sh`; [README.md](../README.md) says what is counted.
"""
SAMPLE = """# SAMPLE: a dry run without a GPU

**Nothing here was measured on a GPU.** A stand-in gave Equipoise's numbers of `check` and `bench`; the peer and `train`
ran small and on the CPU. Only the form is meant.
"""


def document(results: dict[str, Any]) -> str:
    """All of RESULTS.md."""
    text = SAMPLE if results["sample"] else TITLE
    text += f"\n{setting(results)}\n## Against the goals\n\n{goals_table(results)}"
    for title, part in (
        ("Speed and memory: a Llama of 8B's shape, random weights, r=16 on all linears", speed_table(results)),
        ("Where the time goes", time_table(results)),
        ("The same training on GPU and CPU", train_table(results)),
        ("Operations and steps", checks_table(results)),
    ):
        text += f"\n## {title}\n\n{part}" if part else ""
    remarks = [f"- `{name}`: {remark}\n" for name, part in results["parts"].items() for remark in part["remarks"]]
    return text + (f"\n## Remarks\n\n{''.join(remarks)}" if remarks else "")
