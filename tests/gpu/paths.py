"""Where CUDA's libraries are: what our program is given, what it opened, and what the machine says of itself."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from call import Call

VARIABLE = "EQUIPOISE_CUDA_PATH"
VARIABLES = ("LD_LIBRARY_PATH", "VIRTUAL_ENV", "PYTHONPATH", VARIABLE, "CUDA_HOME", "CUDA_VISIBLE_DEVICES")
TOOLKIT = "/usr/local/cuda"
SURVEY_LIMIT = 10.0
"""Seconds for each program that is asked."""
NVIDIA_FOLDERS = """
import importlib.util
spec = importlib.util.find_spec("nvidia")
print(*(spec.submodule_search_locations or [] if spec else []), sep="\\n")
"""


def environment(python: str) -> dict[str, str]:
    """What our programs get besides: the libraries that torch's wheels brought along, if any, then the toolkit."""
    if os.environ.get(VARIABLE):
        return {}
    folder = wheels(python)
    return {VARIABLE: f"{folder}:{TOOLKIT}"} if folder else {}


def wheels(python: str) -> Path | None:
    """The folder `nvidia` of an interpreter's packages, if cuBLAS is in it."""
    for line in output([python, "-c", NVIDIA_FOLDERS]).splitlines():
        if any(found for name in ("cu13", "cublas") for found in Path(line).glob(f"{name}/lib/libcublas.so*")):
            return Path(line)
    return None


def output(command: list[str | Path], limit: float = 20) -> str:
    """What a program prints; nothing if it fails. Not for programs that use the GPU: it waits for their end."""
    try:
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=limit)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def survey(call: "Call") -> None:
    """Writes into results and log what decides which libraries are found."""
    found = call.results["libraries"]
    found["date"] = call.date
    found["environment"] = {name: os.environ.get(name) for name in VARIABLES} | call.environment
    for name, command, wanted in (
        ("ldconfig", ["ldconfig", "-p"], ("libcuda", "cublas", "nvrtc")),
        ("nvidia_smi", ["nvidia-smi"], ("",)),
        ("memory", ["free", "-g"], ("",)),
        ("cores", ["nproc"], ("",)),
    ):
        found[name] = asked(call, command, wanted)
    for name, value in found.items():
        lines = value if isinstance(value, list) else [str(value)]
        print(f"{name}:", *lines, sep="\n  ", file=call.log, flush=True)


def asked(call: "Call", command: list[str], wanted: tuple[str, ...]) -> list[str]:
    """The first lines of a program's output that hold one of some words."""
    path = shutil.which(command[0], path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if path is None:
        return [f"no {command[0]}"]
    ended = call.run([path, *command[1:]], call.left(SURVEY_LIMIT))
    lines = [line.rstrip() for line in ended.text.splitlines() if any(word in line for word in wanted)]
    return [line for line in lines if line][:20] if ended.status == 0 else [ended.why()]


def note_opened(libraries: dict[str, Any], event: dict[str, Any]) -> None:
    """Keeps what the program opened first; later ones only if they differ."""
    named = (event.get("libraries") or {}).items()
    opened = {"gpu": event.get("gpu"), "libraries": {name: str(path) for name, path in named if path}}
    known = libraries.setdefault("opened", opened)
    if opened != known and opened not in libraries.setdefault("opened_later", []):
        libraries["opened_later"].append(opened)


def doubts(libraries: dict[str, Any]) -> list[str]:
    """What is suspicious of the libraries that were opened."""
    opened = libraries.get("opened", {}).get("libraries", {})
    # Behind a name there may be a version.
    blas = [(name, path) for name, path in opened.items() if name.split()[0] in ("cuBLAS", "cuBLASLt")]
    found = []
    if len({os.path.dirname(os.path.realpath(path)) for _, path in blas}) > 1:
        found.append("cuBLAS and cuBLASLt were opened from different folders")
    if len({name.partition(" ")[2] for name, _ in blas}) > 1:
        found.append("cuBLAS and cuBLASLt are of different versions")
    if libraries.get("opened_later"):
        found.append(f"later processes opened something else: {libraries['opened_later']}")
    return found
