"""The machine: what the GPU says of itself, and processes with a time limit whose memory on it is watched."""

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import reading

POLL = 0.02
"""Seconds between two looks at the GPU's memory."""
NVML_LIMIT = 10.0
"""Seconds for one call of NVML: on a broken GPU it may never return."""
DEATH = 10.0
"""Seconds that a killed process may take to end. One that hangs in the driver may never end."""
JOIN = 5.0
"""Seconds that a thread may take to end after its process."""
TAIL_BYTES = 1 << 16
"""Of what a process wrote on stderr, this much of the end is kept."""


def bounded(work: Callable[[], Any], seconds: float) -> Any:
    """The result of a call that may never return. TimeoutError without one; its thread is left behind."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(work()), daemon=True)
    thread.start()
    thread.join(seconds)
    if not results:
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    return results[0]


class Memory(ctypes.Structure):
    """NVML's nvmlMemory_t."""

    _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]


class Gpu:
    """One GPU by NVML, the library of the driver. Without it every answer is None."""

    def __init__(self) -> None:
        self.nvml = self.handle = None
        self.silent = False
        """Whether NVML once gave no answer. It is not asked again."""
        self.ask(self.open, 2 * NVML_LIMIT)

    def open(self, index: int = 0) -> None:
        try:
            library, handle = ctypes.CDLL("libnvidia-ml.so.1"), ctypes.c_void_p()
        except OSError:
            return
        if library.nvmlInit_v2() == 0 and library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) == 0:
            self.nvml, self.handle = library, handle

    def ask(self, question: Callable[[], Any], limit: float | None = None) -> Any:
        """An answer in limited time; None without one."""
        if self.silent:
            return None
        try:
            return bounded(question, NVML_LIMIT if limit is None else limit)
        except TimeoutError:
            self.silent = True
            return None

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
    device = gpu.ask(gpu.about) or dict.fromkeys(("gpu", "driver", "gpu_bytes"))
    return {**device, "cpu": cpu, "cores": len(os.sched_getaffinity(0)), "system": " ".join(os.uname()[0:5:2])}


def same(known: dict[str, Any], here: dict[str, Any]) -> bool:
    """Whether numbers of both can stand side by side. The kernel's release does not matter."""
    return all(known.get(name) == here[name] for name in ("gpu", "driver", "cpu", "cores"))


def read(path: str) -> str:
    """A file of the system; empty where there is none."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""


@dataclass
class Ended:
    """A process that has ended, or that was given up (`stuck`)."""

    baseline: int | None = None
    """Bytes in use on the GPU before it began."""
    status: int = 0
    seconds: float = 0.0
    timed_out: bool = False
    stuck: bool = False
    """It was killed, and did not end."""
    stderr: list[str] = field(default_factory=list)
    """The last lines that it wrote there."""
    lines: list[str] = field(default_factory=list)
    """What it wrote on stdout."""
    samples: list[tuple[float, int]] = field(default_factory=list)
    """When (seconds from the start), and bytes in use on the whole GPU then."""
    arrivals: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    """When each line of JSON came, and what it said."""

    @property
    def text(self) -> str:
        return "".join(self.lines)

    def peak(self, start: float = 0.0, end: float = float("inf")) -> int | None:
        """The most bytes that were in use between two moments, above what was there before the process."""
        found = [used for when, used in self.samples if start <= when <= end]
        return max(found) - self.baseline if found and self.baseline is not None else None

    def outcome(self) -> str:
        """How it ended, in words."""
        if self.stuck:
            return f"killed after {self.seconds:.0f} s, and did not end: it hangs in the driver"
        if self.timed_out:
            return f"stopped after {self.seconds:.0f} s, its time limit"
        if self.status < 0:
            return f"killed by {signal.Signals(-self.status).name}"
        return "ended" if self.status == 0 else f"ended with exit code {self.status}"

    def why(self) -> str:
        """The outcome, and the last line of stderr that begins a message; one that was killed gave no reason."""
        if self.timed_out or self.stuck:
            return self.outcome()
        marks = ("  x ", "  \N{MULTIPLICATION SIGN} ")
        messages = [line.strip() for line in self.stderr if line[:1].strip() or line.startswith(marks)]
        messages = [line[2:] if line[:2] in ("x ", "\N{MULTIPLICATION SIGN} ") else line for line in messages]
        return f"{self.outcome()}: {messages[-1]}" if messages else self.outcome()


def run(
    command: list[str],
    limit: float,
    log: TextIO,
    gpu: Gpu,
    environment: dict[str, str] | None = None,
    merged: bool = False,
) -> Ended:
    """Runs a program for `limit` seconds at most; what it printed until then is kept. It never waits without end.

    stderr goes into `log`; if `merged`, among the lines of stdout.
    """
    print("+", *command, file=log, flush=True)
    ended = Ended(baseline=gpu.ask(gpu.used))
    mark, start = os.fstat(log.fileno()).st_size, time.monotonic()
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if merged else log,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
    except OSError as error:
        print(f"= {error}", file=log, flush=True)
        ended.status, ended.stderr = 127, [str(error)]
        return ended
    done = threading.Event()
    listener = threading.Thread(target=listen, args=(child, ended, start), daemon=True)
    watcher = threading.Thread(target=watch, args=(gpu, ended, start, done), daemon=True)
    listener.start()
    if ended.baseline is not None:
        watcher.start()
    try:
        child.wait(max(limit, 1.0))
    except subprocess.TimeoutExpired:
        ended.timed_out = True
    finally:
        ended.seconds = time.monotonic() - start
        ended.stuck = not stop(child)
        done.set()
    listener.join(1 if ended.stuck else JOIN)
    # Who still holds the other end of the pipe was started by the process, and lives.
    ended.stuck |= listener.is_alive()
    if watcher.is_alive():
        watcher.join(JOIN)
        gpu.silent |= watcher.is_alive()
    ended.status = -signal.SIGKILL if child.returncode is None else child.returncode
    ended.stderr = written(log, mark)
    print(f"= {ended.outcome()}, {ended.seconds:.1f} s", file=log, flush=True)
    return ended


def stop(child: subprocess.Popen[bytes]) -> bool:
    """Ends a process, and what it has started; whether it did end."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    return reaped(child)


def reaped(child: subprocess.Popen[bytes]) -> bool:
    """Waits for a killed process; whether it has ended."""
    try:
        child.wait(DEATH)
    except subprocess.TimeoutExpired:
        return False
    return True


def written(log: TextIO, mark: int) -> list[str]:
    """The last lines of a log, behind a place in it."""
    with open(log.name, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(mark, size - TAIL_BYTES))
        return file.read(TAIL_BYTES).decode(errors="replace").splitlines()[-40:]


def listen(child: subprocess.Popen[bytes], ended: Ended, start: float) -> None:
    """Keeps what a process prints, and the time of each line of JSON."""
    assert child.stdout is not None
    with child.stdout:
        for raw in child.stdout:
            came, line = time.monotonic() - start, raw.decode(errors="replace")
            ended.lines.append(line)
            if line.startswith("{"):
                with contextlib.suppress(ValueError):
                    ended.arrivals.append((came, reading.parsed(line)))


def watch(gpu: Gpu, ended: Ended, start: float, done: threading.Event) -> None:
    """Looks at the GPU's memory until the process is done."""
    while not done.wait(POLL):
        used = gpu.used()
        if used is not None:
            ended.samples.append((time.monotonic() - start, used))
