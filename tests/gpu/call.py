"""One call of run.sh: its clock, its processes, and what it has found so far."""

import argparse
import contextlib
import copy
import datetime
import json
import time
from pathlib import Path
from typing import Any

import goals
import machine
import paths
import reading
import report

GPU_LOST = "left out: a process did not end when it was killed, so the GPU no longer answers"


class GpuLost(Exception):
    """Nothing more is started on the GPU."""

    def __init__(self) -> None:
        super().__init__(GPU_LOST)


class Log:
    """log.txt. What cannot be written, as on a full disk, is lost and stops nothing."""

    def __init__(self, path: Path, mode: str) -> None:
        self.file, self.name = path.open(f"{mode}b", buffering=0), str(path)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self.file.close()

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self.file.write(text.encode(errors="replace"))
        return len(text)

    def flush(self) -> None:
        """Nothing waits."""

    def fileno(self) -> int:
        return self.file.fileno()


class Call:
    """The arguments, the clock, and the results."""

    def __init__(self, args: argparse.Namespace, log: Log, work: Path) -> None:
        self.args, self.log, self.work = args, log, work
        self.gpu, self.end = machine.Gpu(), time.monotonic() + args.limit
        self.date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        self.environment = paths.environment(args.python)
        self.lost = False
        """Whether a process on the GPU did not end when it was killed."""
        self.unwritten = False
        """Whether results could once not be written."""
        self.took: dict[str, float] = {}
        """Seconds of each part."""
        self.results = self.begin()

    def begin(self) -> dict[str, Any]:
        """The head of the results. Parts of an earlier call on the same machine stay, each with its own date."""
        print(f"== {self.date}: {self.args.said}", file=self.log, flush=True)
        head = {"sample": self.args.dry_run, "machine": machine.about(self.gpu), "libraries": {}, "parts": {}}
        path = self.args.out / "results.json"
        if path.exists() and not self.args.dry_run:
            try:
                known = json.loads(path.read_text())
                if machine.same(known["machine"], head["machine"]):
                    found = head | {"parts": known["parts"]}
                    # Another version may have written it: all must be judged and shown as it is.
                    trial = copy.deepcopy(found)
                    goals.judge(trial)
                    report.document(trial)
                    return found
                why = "is of another machine"
            except Exception as error:
                why = f"cannot be used ({type(error).__name__}: {error})"
            old = path.replace(path.with_name("results.old.json"))
            print(f"{path} {why}; it is now {old}", flush=True)
        return head

    def start(self, part: str) -> dict[str, Any]:
        """A new part among the results."""
        about = {"date": self.date, "command": self.args.said, "version": self.args.version}
        found = {**about, "complete": False, "remarks": []}
        self.results["parts"][part] = found
        return found

    def left(self, limit: float, part_end: float = float("inf")) -> float:
        """Seconds for a process: its own limit, its part's end, the call's end."""
        now = time.monotonic()
        return max(0.0, min(limit, part_end - now, self.end - now))

    def run(
        self, command: list[str | Path], limit: float, environment: dict[str, str] | None = None, merged: bool = False
    ) -> machine.Ended:
        """Runs a process. GpuLost where an earlier one still hangs on the GPU."""
        if self.lost:
            raise GpuLost
        ended = machine.run([str(word) for word in command], limit, self.log, self.gpu, environment, merged)
        self.lost |= ended.stuck
        return ended

    def run_ours(
        self, command: list[str | Path], limit: float, environment: dict[str, str] | None = None, merged: bool = False
    ) -> machine.Ended:
        """Runs one of our programs, and keeps which libraries it opened."""
        ended = self.run(command, limit, {**self.environment, **(environment or {})}, merged)
        event = reading.open_event(ended.text)
        if event is not None:
            paths.note_opened(self.results["libraries"], event)
        return ended

    def save(self) -> None:
        """Writes both files anew, whole or not at all. Where the disk is full, the call goes on without them."""
        goals.judge(self.results)
        try:
            self.write()
        except OSError as error:
            if not self.unwritten:
                print(f"  results cannot be written ({error}); the report at the end has them", flush=True)
            self.unwritten = True

    def write(self) -> None:
        text = json.dumps(self.results, indent=1, allow_nan=False) + "\n"
        for name, content in (("results.json", text), ("RESULTS.md", report.document(self.results))):
            path = self.args.out / name
            fresh = path.with_suffix(".new")
            fresh.write_text(content)
            fresh.replace(path)


def note(found: dict[str, Any], remark: str) -> None:
    """A remark that stands in the results and is seen at once."""
    found["remarks"].append(remark)
    print(f"  {remark}", flush=True)
