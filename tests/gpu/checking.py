"""The part `check`: every operation and whole steps against the CPU, a process for each theme."""

import os
import shutil
import time
from pathlib import Path
from typing import Any

import commands
import machine
import reading
from call import GPU_LOST, Call, note

CODES = {
    2: "the GPU could not be opened",
    3: "the GPU's context was lost",
    4: "a comparison gave no answer",
}
"""Exit codes of gpu-check beside 0 and 1."""
SHORTEST = 5.0
"""Seconds under which a theme is not begun."""
SHORTEST_RERUN = 10.0
"""Seconds under which it is not run again."""
TAIL = 40
"""Lines of a rerun that are kept."""
FAILURES = 20
"""Of a rerun's failed comparisons, so many are kept."""
LONGEST_LINE, STDERR = 300, 20
"""Characters of a line, and lines of stderr, that are kept of a process that broke."""
LOGGED = 400
"""Lines of a rerun that go into the log."""


def check(call: Call) -> None:
    """All themes; then those that failed or were incomplete once more, small, under a tool that sees more."""
    found, end = call.start("check"), time.monotonic() + part_limit(call)
    found |= {"themes": {}, "checks": []}
    suspects = [theme for theme in commands.THEMES if compare(call, found, theme, end)]
    themes = found["themes"]
    found["complete"] = all(theme["complete"] for theme in themes.values())
    # What died tells more under the tool than what came out wrong.
    for theme in sorted(suspects, key=lambda theme: themes[theme]["complete"]):
        rerun(call, found, theme, end)
        call.save()


def part_limit(call: Call) -> float:
    """On the CPU there is no hurry."""
    return call.args.limit if call.args.host else commands.LIMITS["check"]


def process_limit(call: Call, limit: float) -> float:
    """Of one process; other ones in a dry run."""
    if call.args.host:
        return commands.HOST_LIMIT
    return commands.STANDIN_LIMIT if call.args.dry_run else limit


def compare(call: Call, found: dict[str, Any], theme: str, end: float) -> bool:
    """One theme: its comparisons go among all others. Whether a second look at it is worth its time."""
    result = found["themes"][theme] = {"outcome": "left out", "seconds": 0.0, "complete": False}
    if call.lost or call.left(SHORTEST, end) < SHORTEST:
        result["outcome"] = GPU_LOST if call.lost else "left out: no time was left"
        note(found, f"{theme}: {result['outcome']}")
        return False
    limit = call.left(process_limit(call, commands.THEMES[theme]), end)
    each = 0.5 * limit if call.args.host else commands.each_limit(limit)
    ended = call.run_ours(commands.check_command(call.args, theme, each), limit)
    outcome, checks = described(ended), reading.checks(ended.text)
    complete = not ended.timed_out and not ended.stuck and ended.status in (0, 1) and bool(checks)
    if begun := reading.unanswered(ended.text):
        nothing = {**begun, "error": None, "passed": False, "failure": f"no result: {outcome}"}
        checks.append(reading.checked(nothing))
    found["checks"] += [{**check, "theme": theme} for check in checks]
    result |= {"outcome": outcome, "seconds": ended.seconds, "complete": complete}
    if not complete:
        result["stderr"] = tail(ended)
        note(found, f"{theme}: not all was compared: {outcome}" + last_words(ended))
    call.save()
    failed = not complete or not all(check["passed"] for check in checks)
    # Without a GPU there is nothing to look at.
    return failed and ended.status != 2


def described(ended: machine.Ended) -> str:
    """How a process of gpu-check ended."""
    meaning = CODES.get(ended.status)
    return f"{ended.outcome()}: {meaning}" if meaning else ended.outcome()


def tail(ended: machine.Ended) -> list[str]:
    """The end of what a process wrote on stderr."""
    return [line[:LONGEST_LINE] for line in ended.stderr[-STDERR:]]


def last_words(ended: machine.Ended) -> str:
    return ended.why()[len(ended.outcome()) :][:LONGEST_LINE]


def rerun(call: Call, found: dict[str, Any], theme: str, end: float) -> None:
    """A theme once more. What it says is kept; its comparisons do not count."""
    tool = None if call.args.dry_run else sanitizer()
    ended = again(call, found, theme, tool, end)
    if tool and ended and not worked(ended):
        note(found, f"{theme}: {tool} did not work: {ended.outcome()}")
        if second := again(call, found, theme, None, end):
            tool, ended = None, second
    if ended is None:
        return
    failed = [check for check in reading.checks(ended.text) if not check["passed"]]
    lines = [line[:LONGEST_LINE] for line in ended.text.splitlines() if not line.startswith("{")]
    result = found["themes"][theme]["rerun"] = {
        "tool": "compute-sanitizer memcheck" if tool else "CUDA_LAUNCH_BLOCKING=1",
        "outcome": "memcheck found errors" if ended.status == commands.MEMCHECK_CODE else described(ended),
        "seconds": ended.seconds,
        "failed": [f"{check['name']} in {check['dtype']}: {failure(check)}" for check in failed[:FAILURES]],
        "lines": lines[-TAIL:],
    }
    note(found, f"{theme}, again and small: {result['outcome']}")


def worked(ended: machine.Ended) -> bool:
    """Whether the tool let the program compute: it found something, or a comparison passed under it."""
    return ended.status == commands.MEMCHECK_CODE or any(check["passed"] for check in reading.checks(ended.text))


def again(call: Call, found: dict[str, Any], theme: str, tool: str | None, end: float) -> machine.Ended | None:
    """Runs a theme small, under the tool if there is one; None where that is not possible."""
    if call.lost:
        return None
    if call.left(SHORTEST_RERUN, end) < SHORTEST_RERUN:
        return note(found, f"{theme}: not run again, no time was left")
    limit = call.left(process_limit(call, commands.RERUN_LIMIT), end)
    command = commands.check_command(call.args, theme, 0.9 * limit, small=True)
    if tool:
        ended = call.run_ours([*commands.memcheck(tool), *command], limit, merged=True)
    else:
        ended = call.run_ours(command, limit, {"CUDA_LAUNCH_BLOCKING": "1"}, merged=True)
    print(*ended.text.splitlines()[-LOGGED:], sep="\n", file=call.log, flush=True)
    return ended


def failure(check: dict[str, Any]) -> str:
    """Why a comparison failed, in a line."""
    if check["error"] is not None:
        return f"the error is {check['error']:.1e}"
    return check.get("failure", "no number").partition("\n")[0]


def sanitizer() -> str | None:
    """compute-sanitizer: on the PATH, else in the CUDA toolkit."""
    homes = filter(None, (os.environ.get("CUDA_HOME"), "/usr/local/cuda"))
    folders = [os.environ.get("PATH", ""), *(str(Path(home) / "bin") for home in homes)]
    return shutil.which("compute-sanitizer", path=":".join(folders))
