"""Tables of what was measured, in Markdown. It reads the raw numbers of results.json, and measures nothing."""

from typing import Any

from counting import Spread

GIB = 2**30

SPEED_GOALS = {
    "full 4x256 recompute off": 2.0,
    "full 4x256 recompute on": 2.5,
    "full 1x2048 recompute off": 2.0,
    "full 1x2048 recompute on": 2.0,
}
"""Tokens a second, as a multiple of the peer's best mode."""
MEMORY_GOAL = 0.35
"""Peak RSS, as a share of the peer's."""
FIRST_STEP_GOAL = 0.1
"""Time from the start of the process to the start of its first step, as a share of the peer's."""
SHARE_GOAL = 0.55
"""Of the machine's bf16 GEMM peak."""


def rates(mode: dict[str, Any], key: str = "tokens") -> list[float]:
    """Tokens a second of all counted steps of all runs."""
    return [step[key] / step["seconds"] for run in mode["runs"] for step in run["steps"][1:]]


def flops(result: dict[str, Any], mode: dict[str, Any]) -> list[float]:
    """FLOP a second of all counted steps of all runs; empty where no FLOP were counted."""
    if not result["flop"]:
        return []
    return [
        flop / step["seconds"] for run in mode["runs"] for flop, step in zip(result["flop"][1:], run["steps"][1:])
    ]


def median(values: list[float]) -> float:
    """The middle; 0 of nothing."""
    return Spread.of(values).median if values else 0.0


def memory(mode: dict[str, Any]) -> float:
    """The median of the runs' peaks, in bytes."""
    return median([run["peak_rss"] for run in mode["runs"]])


def memory_cell(mode: dict[str, Any]) -> str:
    """What was measured, and what the program had expected if it told."""
    expected = mode["runs"][0].get("estimated")
    return f"{memory(mode) / GIB:.2f} GiB" + (f" (estimate {expected / GIB:.2f})" if expected else "")


def first_step(mode: dict[str, Any]) -> float:
    """The median of the runs' times from the start of the process to the start of its first step."""
    return median([run["steps"][0]["arrived"] - run["steps"][0]["seconds"] for run in mode["runs"]])


def share(result: dict[str, Any], mode: dict[str, Any]) -> float:
    """The part of the machine's GEMM peak, of the mode's type, that the step reached."""
    return median(flops(result, mode)) / result["gemm"][mode["dtype"]]


def row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |\n"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table, its first column to the left and all others to the right."""
    return row(head) + row(["---"] + ["---:"] * (len(head) - 1)) + "".join(row(cells) for cells in rows)


def spread(values: list[float]) -> str:
    if not values:
        return "–"
    found = Spread.of(values)
    return f"{found.median:.0f} ({found.least:.0f}–{found.most:.0f})"


def modes_table(result: dict[str, Any]) -> str:
    """What each mode reached in one configuration."""
    head = ["mode", "tokens/s (min–max)", "supervised/s", "peak RSS", "before step 1", "first loss", "GFLOP/s", "of GEMM peak"]
    rows = []
    for name, mode in result["modes"].items():
        if not mode["runs"]:
            rows.append([name, "failed"] + ["–"] * (len(head) - 2))
            continue
        rate = flops(result, mode)
        rows.append([
            name,
            spread(rates(mode)),
            f"{median(rates(mode, 'supervised')):.0f}",
            memory_cell(mode),
            f"{first_step(mode):.2f} s",
            f"{mode['runs'][0]['steps'][0]['loss']:.4f}",
            f"{median(rate) / 1e9:.0f}" if rate else "–",
            f"{share(result, mode):.0%} of {mode['dtype']}" if rate else "–",
        ])
    return table(head, rows)


def best(result: dict[str, Any], side: str) -> dict[str, Any] | None:
    """The fastest mode of a side that trains under sft."""
    modes = [m for m in result["modes"].values() if m["side"] == side and m["objective"] == "sft" and m["runs"]]
    return max(modes, key=lambda mode: median(rates(mode)), default=None)


def verdict(value: float, goal: float | None, at_least: bool) -> str:
    """A ratio beside its goal."""
    if goal is None:
        return f"{value:.2f}"
    met = value >= goal if at_least else value <= goal
    return f"{value:.2f} ({'≥' if at_least else '≤'} {goal:g}: {'met' if met else '**not met**'})"


def goals_table(results: dict[str, Any]) -> str:
    """Equipoise's fastest mode over the peer's fastest, configuration by configuration."""
    head = ["configuration", "modes", "tokens/s", "peak RSS", "before step 1", "share of GEMM peak"]
    rows = []
    for key, result in results.items():
        ours, theirs = best(result, "equipoise"), best(result, "peer")
        if ours is None or theirs is None:
            continue
        rows.append([
            key,
            f"{ours['name']} / {theirs['name']}",
            verdict(median(rates(ours)) / median(rates(theirs)), SPEED_GOALS.get(key), at_least=True),
            verdict(memory(ours) / memory(theirs), MEMORY_GOAL, at_least=False),
            verdict(first_step(ours) / first_step(theirs), FIRST_STEP_GOAL, at_least=False),
            verdict(share(result, ours), SHARE_GOAL if ours["dtype"] == "bf16" else None, at_least=True),
        ])
    return table(head, rows)


def same_type_table(results: dict[str, Any]) -> str:
    """Equipoise over the peer where both compute in the same type."""
    rows = []
    for key, result in results.items():
        modes = result["modes"]
        for dtype in ("f32", "bf16"):
            ours, theirs = modes.get(f"equipoise-{dtype}"), modes.get(f"peer-{dtype}")
            if ours and theirs and ours["runs"] and theirs["runs"]:
                speed = median(rates(ours)) / median(rates(theirs))
                rows.append([key, dtype, f"{speed:.2f}", f"{memory(ours) / memory(theirs):.2f}"])
    return table(["configuration", "type", "tokens/s", "peak RSS"], rows) if rows else ""


def gemm_line(result: dict[str, Any]) -> str:
    """The machine's peaks, as measured beside this configuration."""
    peaks = [f"{name} {value / 1e9:.0f}" for name, value in result["gemm"].items() if " " in name]
    return f"GEMM peaks in GFLOP/s: {', '.join(peaks)}. Load before: {result['load_before']}."


def work_line(result: dict[str, Any]) -> str:
    """What a counted step does."""
    mode = next((mode for mode in result["modes"].values() if mode["runs"]), None)
    if mode is None or not result["flop"]:
        return ""
    steps = mode["runs"][0]["steps"][1:]
    tokens, supervised = sum(s["tokens"] for s in steps), sum(s["supervised"] for s in steps)
    flop, attention = sum(result["flop"][1:]), sum(result["attention_flop"][1:])
    return (
        f" {tokens / len(steps):.0f} tokens a step, {supervised / tokens:.1%} supervised; "
        f"{flop / tokens / 1e9:.3f} GFLOP a token, {attention / flop:.1%} of it attention."
    )


def section(kind: str, key: str, result: dict[str, Any]) -> str:
    """One configuration."""
    text = f"### {key}\n\n{modes_table(result)}\n{gemm_line(result)}{work_line(result)}\n"
    text += f"Measured {result['date']} with {result['equipoise_version']} by `{result['command']}`.\n"
    return text + "".join(f"\n- {remark}" for remark in result["remarks"]) + ("\n" if result["remarks"] else "")


SWEEP_TITLES = {
    "length": "Length, at batch 1",
    "batch": "Batch, at 256 tokens",
    "kind": "What is masked, at 4x512: all learnt, answers learnt, questions learnt",
    "rows": "Rows of data, at equal settings",
}


def sweep_section(results: dict[str, Any]) -> str:
    """How Equipoise's cost grows with work."""
    text = "## How cost grows with work: Equipoise alone\n"
    head = ["data", "recompute", "rows", "tokens/s (min–max)", "step", "peak RSS", "supervised", "attention", "MFLOP a token", "of GEMM peak"]
    for group, title in SWEEP_TITLES.items():
        found = [result for result in results.values() if result["group"] == group]
        if found:
            rows = [sweep_row(result) for result in found]
            dates = sorted({result["date"] for result in found})
            text += f"\n### {title}\n\n{table(head, rows)}\nMeasured from {dates[0]} to {dates[-1]}.\n"
    return text


def sweep_row(result: dict[str, Any]) -> list[str]:
    """One measurement of the sweep."""
    mode = next(iter(result["modes"].values()))
    name = f"{result['kind']} {result['batch']}x{result['length']}"
    start = [name, "on" if result["recompute"] else "off", str(result["rows"])]
    if not mode["runs"]:
        return [*start, "failed"] + ["–"] * 6
    steps = [step for run in mode["runs"] for step in run["steps"][1:]]
    tokens = sum(step["tokens"] for step in steps)
    cells = [
        *start,
        spread(rates(mode)),
        f"{median([step['seconds'] for step in steps]):.2f} s",
        memory_cell(mode),
        f"{sum(step['supervised'] for step in steps) / tokens:.1%}",
    ]
    if not result["flop"]:
        return cells + ["–"] * 3
    flop = sum(result["flop"][1:])
    per_token = flop / (tokens / len(mode["runs"]))
    attention = sum(result["attention_flop"][1:]) / flop
    return [*cells, f"{attention:.1%}", f"{per_token / 1e6:.0f}", f"{share(result, mode):.0%} of {mode['dtype']}"]


def document(known: dict[str, Any]) -> str:
    """All of RESULTS.md."""
    text = "# Equipoise against PyTorch + PEFT\n\n"
    text += "Written by `bench_peft.py`; [README.md](README.md) says how to run it and what is counted. "
    text += "Raw numbers: [results.json](results.json).\n\n" + setting(known)
    if known.get("peft"):
        text += f"\n## Against the goals\n\nRatios of medians, each side in its fastest mode.\n\n{goals_table(known['peft'])}"
        same = same_type_table(known["peft"])
        text += f"\nBoth sides in the same type:\n\n{same}" if same else ""
        text += "\n## Configurations\n\n"
        text += "\n".join(section("peft", key, result) for key, result in known["peft"].items())
    if known.get("sweep"):
        text += "\n" + sweep_section(known["sweep"])
    return text


def setting(known: dict[str, Any]) -> str:
    """Machine, versions, and what was trained."""
    machine, counts, settings = known["here"]["machine"], known["counts"], known["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in known["versions"].items() if name != "equipoise")
    return "".join(f"- {line}\n" for line in (
        f"Machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB; {machine['flags']}; {machine['kernel']}",
        f"Threads: {known['here']['threads']} on both sides",
        f"Versions: {known['versions']['equipoise']}; {versions}",
        f"Model: {known['here']['model']}: {counts['body_parameters'] / 1e6:.1f} M parameters in the blocks' matrices, "
        f"{counts['head_parameters'] / 1e6:.1f} M in the head; LoRA r={settings['rank']} on all linear layers, "
        f"{counts['lora_parameters'] / 1e6:.2f} M; the peer has the same weights, dequantized",
        f"Last run: {settings['rounds']} rounds of {settings['steps']} steps, the first of each not counted",
    ))
