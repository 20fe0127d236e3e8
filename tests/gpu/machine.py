"""The machine: what the GPU says of itself, and processes with a time limit whose memory on it is watched."""

import ctypes
import os
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import reading

POLL = 0.02
"""Seconds between two looks at the GPU's memory."""


class Memory(ctypes.Structure):
    """NVML's nvmlMemory_t."""

    _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]


class Gpu:
    """One GPU by NVML, the library of the driver. Without it every answer is None."""

    def __init__(self, index: int = 0) -> None:
        self.nvml = self.handle = None
        try:
            library, handle = ctypes.CDLL("libnvidia-ml.so.1"), ctypes.c_void_p()
        except OSError:
            return
        if library.nvmlInit_v2() == 0 and library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) == 0:
            self.nvml, self.handle = library, handle

    def text(self, call: str, *about: Any) -> str | None:
        """What a call of NVML writes into a buffer."""
        if self.nvml is None:
            return None
        buffer = ctypes.create_string_buffer(96)
        return buffer.value.decode() if getattr(self.nvml, call)(*about, buffer, len(buffer)) == 0 else None

    def memory(self) -> Memory | None:
        """Bytes of the whole device."""
        found = Memory()
        if self.nvml is None or self.nvml.nvmlDeviceGetMemoryInfo(self.handle, ctypes.byref(found)) != 0:
            return None
        return found

    def used(self) -> int | None:
        memory = self.memory()
        return memory.used if memory else None

    def about(self) -> dict[str, Any]:
        memory = self.memory()
        return {
            "gpu": self.text("nvmlDeviceGetName", self.handle),
            "driver": self.text("nvmlSystemGetDriverVersion"),
            "gpu_bytes": memory.total if memory else None,
        }


def about(gpu: Gpu) -> dict[str, Any]:
    """What stands at the head of the results."""
    lines = (line.split(":", 1) for line in read("/proc/cpuinfo").splitlines() if line.startswith("model name"))
    cpu = next((line[1].strip() for line in lines), "unknown CPU")
    return {**gpu.about(), "cpu": cpu, "cores": len(os.sched_getaffinity(0)), "system": " ".join(os.uname()[0:5:2])}


def read(path: str) -> str:
    """A file of the system; empty where there is none."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""


@dataclass
class Ended:
    """A process that has ended."""

    text: str
    status: int
    seconds: float
    timed_out: bool
    baseline: int | None
    """Bytes in use on the GPU before it began."""
    samples: list[tuple[float, int]] = field(default_factory=list)
    """When (seconds from the start), and bytes in use on the whole GPU then."""
    arrivals: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    """When each line of JSON came, and what it said."""

    def peak(self, start: float = 0.0, end: float = float("inf")) -> int | None:
        """The most bytes that were in use between two moments, above what was there before the process."""
        found = [used for when, used in self.samples if start <= when <= end]
        return max(found) - self.baseline if found and self.baseline is not None else None

    def outcome(self) -> str:
        """How it ended, in words."""
        if self.timed_out:
            return f"stopped after {self.seconds:.0f} s, its time limit"
        return "ended" if self.status == 0 else f"ended with exit code {self.status}"


def run(command: list[str], limit: float, log: TextIO, gpu: Gpu, environment: dict[str, str] | None = None) -> Ended:
    """Runs a program for `limit` seconds at most, stderr into `log`; what it printed until then is kept."""
    print("+", *command, file=log, flush=True)
    baseline, start = gpu.used(), time.monotonic()
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=log,
        env={**os.environ, **(environment or {})},
        start_new_session=True,
    )
    ended = Ended("", 0, 0.0, False, baseline)
    done = threading.Event()
    watchers = [threading.Thread(target=listen, args=(child, ended, start), daemon=True)]
    if baseline is not None:
        watchers.append(threading.Thread(target=watch, args=(gpu, ended, start, done), daemon=True))
    for watcher in watchers:
        watcher.start()
    try:
        child.wait(max(limit, 1.0))
    except subprocess.TimeoutExpired:
        ended.timed_out = True
    finally:
        stop(child)
        done.set()
    for watcher in watchers:
        watcher.join(5)
    ended.status, ended.seconds = child.returncode, time.monotonic() - start
    print(f"= {ended.outcome()}, {ended.seconds:.1f} s", file=log, flush=True)
    return ended


def stop(child: subprocess.Popen[bytes]) -> None:
    """Ends a process that still runs, and what it has started."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def listen(child: subprocess.Popen[bytes], ended: Ended, start: float) -> None:
    """Keeps what a process prints, and the time of each line of JSON."""
    assert child.stdout is not None
    for raw in child.stdout:
        came, line = time.monotonic() - start, raw.decode(errors="replace")
        ended.text += line
        if line.startswith("{"):
            try:
                ended.arrivals.append((came, reading.parsed(line)))
            except ValueError:
                continue


def watch(gpu: Gpu, ended: Ended, start: float, done: threading.Event) -> None:
    """Looks at the GPU's memory until the process is done."""
    while not done.wait(POLL):
        used = gpu.used()
        if used is not None:
            ended.samples.append((time.monotonic() - start, used))
