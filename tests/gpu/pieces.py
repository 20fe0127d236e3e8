"""A step piece by piece: matrix products by shape, kernels, copies. Rates are held against peaks of the same run."""

from typing import Any

Piece = dict[str, Any]


def figures(piece: Piece, run: dict[str, Any]) -> dict[str, Any]:
    """A piece with its rates, and their shares of the peaks; None where there is nothing to divide."""
    seconds = piece["seconds"]
    flops, moved = (piece[name] / seconds if piece[name] and seconds else None for name in ("flop", "bytes"))
    peaks = (run.get("gemm_peak_flops"), run.get("copy_peak_bytes_per_second"))
    shares = [rate / peak if rate and peak else None for rate, peak in zip((flops, moved), peaks)]
    return {**piece, "flops": flops, "bytes_per_second": moved, "of_gemm": shares[0], "of_copy": shares[1]}


def total(pieces: list[Piece]) -> Piece:
    """The sum of several pieces; of FLOP and bytes only where all have them, since rates are over the whole time."""
    sums: Piece = {"part": "", "piece": "all of these", "kind": ""}
    for name in ("count", "seconds", "flop", "bytes"):
        values = [piece[name] for piece in pieces]
        sums[name] = sum(values) if all(values) else None
    return sums | {"seconds": sum(piece["seconds"] for piece in pieces)}


def split(run: dict[str, Any]) -> tuple[list[Piece], list[Piece]]:
    """Products, and all else; the longest first."""
    found = sorted((run["profile"] or {}).get("pieces", []), key=lambda piece: -piece["seconds"])
    products = [piece for piece in found if piece["kind"] == "product"]
    return products, [piece for piece in found if piece["kind"] != "product"]


def between(run: dict[str, Any]) -> float | None:
    """Seconds of the step in which no piece ran."""
    step = run["profile"]["step_seconds"]
    return None if step is None else step - sum(piece["seconds"] for piece in run["profile"]["pieces"])


HEAD = ["piece", "part", "count", "ms a step", "TFLOP/s", "of GEMM peak", "GB/s", "of copy peak"]


def rows(pieces: list[Piece], run: dict[str, Any]) -> list[list[str]]:
    """The cells of a table, with the sum in its last row."""
    return [cells(figures(piece, run)) for piece in (*pieces, total(pieces))]


def cells(found: Piece) -> list[str]:
    def shown(value: float | None, scale: float, form: str) -> str:
        return "–" if value is None else format(value / scale, form)

    return [
        found["piece"],
        found["part"],
        shown(found["count"], 1, ".0f"),
        f"{found['seconds'] * 1e3:.2f}",
        shown(found["flops"], 1e12, ".1f"),
        shown(found["of_gemm"], 1, ".1%"),
        shown(found["bytes_per_second"], 1e9, ".0f"),
        shown(found["of_copy"], 1, ".1%"),
    ]


def rest(run: dict[str, Any]) -> str:
    """The time between pieces, in a sentence."""
    found, step = between(run), run["profile"]["step_seconds"]
    if found is None or not step:
        return ""
    return f"Between pieces: {found * 1e3:.2f} ms of a step of {step * 1e3:.2f} ms ({found / step:.1%}).\n"
