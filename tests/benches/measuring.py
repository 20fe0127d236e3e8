"""Processes that are measured: each run in one of its own, its peak memory from the system, its times from its lines."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LOG_TAIL = 2000


class Failed(Exception):
    """A run that ended badly, or did not do what it should have done."""


@dataclass(frozen=True)
class Step:
    """One optimizer step as the program itself told it, and when its line came."""

    loss: float
    seconds: float
    tokens: int
    supervised: int
    arrived: float


@dataclass
class Run:
    """One process."""

    steps: list[Step]
    peak_rss: int
    """Bytes."""
    wall: float
    cpu: float
    """Seconds of all threads, user and system."""
    disturbed: float | None
    """The share of the machine's time that others' programs took meanwhile; None where the system does not tell."""
    estimated: int | None = None
    """Bytes that the program itself had expected to take."""

    @property
    def before_steps(self) -> float:
        """Seconds from the start of the process to the start of its first step."""
        return self.steps[0].arrived - self.steps[0].seconds

    def counted(self) -> list[Step]:
        """The steps that are counted: all but the first."""
        return self.steps[1:]

    def clock_ratio(self) -> float:
        """Seconds between the lines by the driver's clock, over what the program told: near 1 if it tells the truth."""
        told = sum(step.seconds for step in self.counted())
        return (self.steps[-1].arrived - self.steps[0].arrived) / told

    def as_json(self) -> dict[str, Any]:
        return {
            "steps": [asdict(step) for step in self.steps],
            "peak_rss": self.peak_rss,
            "wall": round(self.wall, 3),
            "cpu": round(self.cpu, 3),
            "disturbed": self.disturbed,
            "estimated": self.estimated,
            "clock_ratio": round(self.clock_ratio(), 4) if len(self.steps) > 1 else None,
        }


def environment(threads: int) -> dict[str, str]:
    """The caller's environment with the number of threads, under every name that one side reads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(names, str(threads))}


def run(command: list[str], threads: int, log: Path) -> tuple[list[tuple[float, dict[str, Any]]], Run]:
    """Runs a program; returns its lines of JSON with their times, and what the system measured.

    Its stderr goes into `log`. Only this child is asked for its resources, so runs do not blur into each other.
    """
    lines: list[tuple[float, dict[str, Any]]] = []
    with log.open("wb") as stderr:
        busy, start = busy_seconds(), time.monotonic()
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, env=environment(threads))
        assert child.stdout is not None
        try:
            for line in child.stdout:
                came = time.monotonic() - start
                if line.startswith(b"{"):
                    lines.append((came, json.loads(line)))
        except BaseException:
            child.kill()
            raise
        _, status, usage = os.wait4(child.pid, 0)
        wall, after = time.monotonic() - start, busy_seconds()
        child.stdout.close()
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        tail = log.read_text(errors="replace")[-LOG_TAIL:]
        raise Failed(f"exit code {child.returncode} of: {' '.join(command)}\n{tail}")
    unit = 1 if sys.platform == "darwin" else 1024
    cpu = usage.ru_utime + usage.ru_stime
    disturbed = None
    if busy is not None and after is not None:
        disturbed = round(max(0.0, (after - busy - cpu) / (wall * (os.cpu_count() or 1))), 3)
    return lines, Run([], usage.ru_maxrss * unit, wall, cpu, disturbed)


def busy_seconds() -> float | None:
    """Seconds that all cores together have worked since the machine started, for whomever: time stolen by other
    virtual machines too."""
    numbers = read("/proc/stat").partition("\n")[0].split()[1:9]
    if len(numbers) < 8:
        return None
    user, nice, system, _idle, _waiting, irq, softirq, steal = map(int, numbers)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def wait_for_quiet(patience: float) -> None:
    """Waits until others leave the machine alone for three seconds, `patience` seconds at most."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        before = busy_seconds()
        time.sleep(3)
        after = busy_seconds()
        if before is None or after is None or after - before < 0.15 * (os.cpu_count() or 1):
            return


def train(command: list[str], threads: int, log: Path) -> Run:
    """Runs a training of either side and reads its steps."""
    lines, result = run(command, threads, log)
    for came, line in lines:
        if line["event"] == "step":
            result.steps.append(step_of(line, came))
        elif line["event"] == "summary":
            result.estimated = line.get("estimated_memory")
    if not result.steps:
        raise Failed(f"no step was told by: {' '.join(command)}")
    return result


def step_of(line: dict[str, Any], came: float) -> Step:
    """A step of either side. Equipoise tells tokens a second, and a cross-entropy beside its objective's loss."""
    seconds = line["seconds"] if "seconds" in line else line["tokens"] / line["tokens_per_second"]
    loss = line["cross_entropy"] if "cross_entropy" in line else line["loss"]
    return Step(loss, seconds, line["tokens"], line["supervised_tokens"], came)


@dataclass(frozen=True)
class Machine:
    """Where it was measured."""

    cpu: str
    cores: int
    memory_gib: float
    kernel: str
    flags: str
    """Those instruction sets that matter for matrix products."""


MATRIX_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "bf16", "sve", "i8mm")


def machine() -> Machine:
    """This machine, as far as it tells."""
    cpu_info = read("/proc/cpuinfo")
    about = dict(part.split(":", 1) for part in cpu_info.splitlines() if ":" in part)
    about = {key.strip(): value.strip() for key, value in about.items()}
    name = about.get("model name", "unknown CPU")
    # The model's name may be as bare as "AMD EPYC": family and model tell which one it is.
    if "cpu family" in about:
        name += f" (family {about['cpu family']}, model {about.get('model', '?')})"
    flags = set(about.get("flags", about.get("Features", "")).split())
    total = next((line.split()[1] for line in read("/proc/meminfo").splitlines() if line.startswith("MemTotal")), "0")
    shown = " ".join(flag for flag in MATRIX_FLAGS if flag in flags)
    return Machine(name, cores(), round(int(total) / 2**20, 1), " ".join(os.uname()[i] for i in (0, 2, 4)), shown)


def read(path: str) -> str:
    """A file of the system; empty where there is none."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load() -> float:
    """How many programs wanted to run in the last minute: others' work spoils a measurement."""
    return round(os.getloadavg()[0], 2)
