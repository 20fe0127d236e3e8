"""RESULTS.md, out of results.json."""

from typing import Any

import goals
import paths
import pieces
from commands import first_layers
from goals import gemm_peak, headline, label, ours, part, share, theirs

GIB = 2**30


def row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |\n"


def table(head: list[str], rows: list[list[str]], left: int = 1) -> str:
    """A table, its first columns to the left and all others to the right."""
    return row(head) + row(["---"] * left + ["---:"] * (len(head) - left)) + "".join(row(cells) for cells in rows)


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


# --- comparisons


def numbers(check: dict[str, Any]) -> list[str]:
    """Error, what is allowed, and the CPU's own error in the same type."""
    values = (check["error"], check["tolerance"] if check["error"] is not None else None, check.get("cpu_error"))
    return ["–" if value is None else f"{value:.1e}" for value in values]


def failures_table(results: dict[str, Any]) -> str:
    """What failed, with what the program said of it."""
    rows = []
    for check in part(results, "check").get("checks", []):
        if not check["passed"]:
            # A message may have lines of a backtrace behind it; results.json has them.
            failure = check.get("failure", "too far off").partition("\n")[0]
            rows.append([check["name"], check["dtype"], failure, *numbers(check)])
    head = ["comparison with the CPU", "type", "failure", "error", "allowed", "the CPU's own"]
    return table(head, rows, left=3) if rows else ""


def themes_table(results: dict[str, Any]) -> str:
    """How the process of each theme ended."""
    found, rows = part(results, "check"), []
    for name, theme in found.get("themes", {}).items():
        checks = [check for check in found["checks"] if check["theme"] == name]
        passed = sum(check["passed"] for check in checks)
        again = theme.get("rerun")
        second = f"{again['tool']}: {again['outcome']}" if again else "–"
        verdict = "complete" if theme["complete"] else "**incomplete**"
        rows.append([name, theme["outcome"], verdict, second, f"{passed} of {len(checks)}", f"{theme['seconds']:.1f}"])
    head = ["theme", "its process", "", "again, small", "passed", "seconds"]
    return table(head, rows, left=4) if rows else ""


def last_lines(results: dict[str, Any]) -> str:
    """The end of what processes wrote that broke, or that were run again."""
    text = ""
    for name, theme in part(results, "check").get("themes", {}).items():
        again = theme.get("rerun")
        for title, lines in (
            (f"{name}: the end of stderr", theme.get("stderr")),
            (f"{name}, again under {again['tool']}" if again else "", again and [*again["failed"], *again["lines"]]),
        ):
            text += f"{title}\n\n```text\n{fenced(lines)}\n```\n\n" if lines else ""
    for name, lines in part(results, "train").get("stderr", {}).items():
        text += f"{name}: the end of stderr\n\n```text\n{fenced(lines)}\n```\n\n" if lines else ""
    return text.rstrip("\n") + "\n" if text else ""


def fenced(lines: list[str]) -> str:
    """Lines that do not end the block that they are in."""
    return "\n".join(line.replace("```", "'''") for line in lines)


def checks_table(results: dict[str, Any]) -> str:
    rows = [
        [check["name"], check["dtype"], *numbers(check)]
        for check in part(results, "check").get("checks", [])
        if check["passed"]
    ]
    return table(["comparison with the CPU", "type", "error", "allowed", "the CPU's own"], rows, left=2) if rows else ""


# --- speed


def speed_table(results: dict[str, Any]) -> str:
    """Both sides, shape by shape."""
    sides = [(f"Equipoise {run['quantization']}, {label(run)}", run) for run in ours(results)]
    if len({run["date"] for _, run in sides}) > 1:
        sides = [(f"{name} ({run['date']})", run) for name, run in sides]
    sides += [(f"PEFT + bitsandbytes {run['mode']}", run) for run in theirs(results)]
    sides.sort(key=lambda side: (side[1]["length"], side[0]))
    peaks = ["peak GiB", "reserved", "on the device"]
    head = ["", "rows x length", "tokens/s (min–max)", *peaks, "of GEMM peak", "first loss"]
    rows = []
    for side, run in sides:
        found = share(results, run)
        shown = f"{found:.1%}" if found is not None else "–"
        loss = f"{run['loss']:.3f}" if run.get("loss") is not None else "–"
        peaks = [memory(run, name) for name in goals.PEAKS]
        rows.append([side, f"{run['rows']}x{run['length']}", rates(run), *peaks, shown, loss])
    return table(head, rows) if rows else ""


def time_table(results: dict[str, Any]) -> str:
    """Where the time of a step goes, on our side."""
    runs = [run for run in ours(results) if run.get("parts")]
    names = list(dict.fromkeys(name for run in runs for name in run["parts"]))
    rows = []
    for run in runs:
        total = run.get("profiled_step_seconds") or run.get("step_seconds") or sum(run["parts"].values())
        rows.append([f"{run['rows']}x{run['length']} {run['quantization']}, {label(run)}", f"{total * 1e3:.1f} ms"])
        rows[-1] += [f"{run['parts'][name] / total:.1%}" if name in run["parts"] else "–" for name in names]
    return table(["", "step", *names], rows) if rows else ""


def profiled(results: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """The measurement that is shown piece by piece: the headline, else the glance."""
    run = headline(results)
    if run is not None and run.get("profile"):
        return label(run), run
    runs = [run for run in part(results, "glance").get("runs", []) if run.get("profile")]
    return ("of the glance", runs[-1]) if runs else None


def pieces_tables(results: dict[str, Any]) -> list[tuple[str, str]]:
    """Titles and tables: products by shape, and kernels with copies."""
    found = profiled(results)
    if found is None:
        return []
    which, run = found
    shape = f"{run['rows']}x{run['length']} {run['quantization']}"
    about = f"One step of {shape}, {which}; times are of CUDA events.\n\n"
    products, kernels = pieces.split(run)
    sections = [
        (title, about + table(pieces.HEAD, pieces.rows(rows, run), left=2))
        for title, rows in (("Products by shape", products), ("Kernels", kernels))
        if rows
    ]
    if sections and (rest := pieces.rest(run)):
        title, text = sections[-1]
        sections[-1] = (title, f"{text}\n{rest}")
    return sections


# --- training


def train_table(results: dict[str, Any]) -> str:
    found, rows = part(results, "train"), []
    for run in found.get("runs", []):
        curves = (run["loss"], run["cross_entropy"])
        apart = [f"{each['max']:.3%} / {each['mean']:.3%}" if each else "–" for each in curves]
        rows.append([run["recipe"], f"{run['device']} {run['compute']}", str(run["steps"]), *apart])
    head = ["recipe", "against cpu f32", "steps", "loss apart, most / mean", "cross-entropy apart, most / mean"]
    return table(head, rows) + model_line(found) if rows else ""


def model_line(found: dict[str, Any]) -> str:
    """Which model it was, and whether it was the whole one."""
    name = found.get("model")
    if name is None:
        return ""
    layers = first_layers(name)
    return f"\nSmolLM2 is `{name}`" + (f": its first {layers} layers, **not the whole model**.\n" if layers else ".\n")


def evidence_table(results: dict[str, Any]) -> str:
    """Validation before the first step and after the last, by objective and seed."""
    found, rows = part(results, "evidence"), []
    for run in sorted(found.get("runs", []), key=lambda run: run["objective"]):
        pairs = [(run[when] or {}).get(name) for name in ("loss", "token_accuracy") for when in ("before", "after")]
        losses = [f"{value:.4f}" if value is not None else "–" for value in pairs[:2]]
        shares = [f"{value:.2%}" if value is not None else "–" for value in pairs[2:]]
        rows.append([run["objective"], str(run["seed"]), *losses, *shares])
    if not rows:
        return ""
    head = ["objective", "seed", "cross-entropy before", "after", "token accuracy before", "after"]
    device = "the CPU in f32" if results["sample"] else "the GPU in bf16"
    about = f"`{found['recipe']}`, {found['steps']} steps on {device}; all validation rows.\n\n"
    return about + table(head, rows) + model_line(found)


# --- the whole


def setting(results: dict[str, Any]) -> str:
    here, peer = results["machine"], part(results, "peer")
    total = f", {here['gpu_bytes'] / GIB:.1f} GiB" if here["gpu_bytes"] else ""
    lines = [
        f"GPU: {here['gpu'] or 'none'}{total}; driver {here['driver'] or 'none'}",
        f"Machine: {here['cpu']}, {here['cores']} cores; {here['system']}",
        libraries_line(results["libraries"]),
        *(f"**Doubtful:** {doubt}" for doubt in paths.doubts(results["libraries"])),
    ]
    if "start" in peer:
        names = ("python", "torch", "cuda", "transformers", "peft", "bitsandbytes", "accelerate")
        lines.append("The peer: " + ", ".join(f"{name} {peer['start'].get(name)}" for name in names))
    if peak := gemm_peak(results):
        lines.append(f"bf16 GEMM peak: {peak / 1e12:.1f} TFLOP/s")
    for name, found in results["parts"].items():
        about = (f"`{name}`: {found['date']}", found["version"], f"by `{found['command']}`")
        lines.append(", ".join(filter(None, about)))
    return "".join(f"- {line}\n" for line in lines)


def libraries_line(libraries: dict[str, Any]) -> str:
    """The files that our program opened."""
    opened = libraries.get("opened", {}).get("libraries", {})
    return "Libraries: " + (", ".join(f"{name} `{path}`" for name, path in opened.items()) or "none were opened")


TITLE = """# Equipoise on one GPU

Written by `run.sh`; [README.md](../README.md) says what is counted.
"""
SAMPLE = """# SAMPLE: a dry run without a GPU

**Nothing here was measured on a GPU.** Equipoise's numbers of `check`, `glance` and `bench` are a stand-in's, which goes wrong
on purpose, or of its kernels on the CPU; the peer, `train` and `evidence` ran small and on the CPU. Only the form is meant.
"""


def document(results: dict[str, Any], passed: bool = True) -> str:
    """All of RESULTS.md; the comparisons that passed, which are many, may be left out."""
    text = SAMPLE if results["sample"] else TITLE
    text += f"\n{setting(results)}\n## Against the goals\n\n{goals_table(results)}"
    for title, found in (
        ("Failed comparisons", failures_table(results)),
        ("Comparisons, a process for each theme", themes_table(results)),
        ("Output of what broke or was run again", last_lines(results)),
        ("Speed and memory: a Llama of 8B's shape, random weights, r=16 on all linears", speed_table(results)),
        ("Where the time goes", time_table(results)),
        *pieces_tables(results),
        ("The same training on GPU and CPU", train_table(results)),
        ("SmolLM2 under each objective", evidence_table(results)),
        ("Operations and steps that passed", checks_table(results) if passed else ""),
    ):
        text += f"\n## {title}\n\n{found}" if found else ""
    remarks = [f"- `{name}`: {remark}\n" for name, found in results["parts"].items() for remark in found["remarks"]]
    return text + (f"\n## Remarks\n\n{''.join(remarks)}" if remarks else "")
