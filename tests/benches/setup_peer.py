"""What must be there before anything is measured: the virtual environment, the binary, the peer's model."""

import json
import subprocess
import sys
import venv
from pathlib import Path

PACKAGES = (
    "torch==2.15.0",
    "transformers==5.23.0",
    "peft==0.21.2",
    "safetensors==0.8.0",
    "gguf==0.19.0",
    "datasets==5.2.0",
)
"""The peer, and what reads its model. Pinned, so that results can be compared."""

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def call(command: list[str | Path], **options: object) -> None:
    """Runs a command whose output people may want to see."""
    print("+", *command, file=sys.stderr, flush=True)
    subprocess.run([str(part) for part in command], check=True, **options)


def python_of(folder: Path, pip_arguments: list[str], packages: tuple[str, ...] = PACKAGES) -> Path:
    """The interpreter of the peer's virtual environment, which is made where it is not there yet."""
    python, stamp = folder / "bin" / "python", folder / "installed.json"
    wanted = json.dumps(packages)
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    if not python.exists():
        venv.create(folder, with_pip=True)
    call([python, "-m", "pip", "install", *pip_arguments, *packages], stdout=sys.stderr)
    stamp.write_text(wanted)
    return python


def build_equipoise() -> Path:
    """The release binary, built now."""
    command = ["cargo", "build", "--release", "--bin", "equipoise", "--message-format=json-render-diagnostics"]
    print("+", *command, file=sys.stderr, flush=True)
    built = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    messages = [json.loads(line) for line in built.stdout.splitlines() if line.startswith("{")]
    binaries = [message["executable"] for message in messages if message.get("executable")]
    if not binaries:
        raise SystemExit("cargo built no executable; give the binary by --equipoise")
    return Path(binaries[-1])


def peer_model(python: Path, gguf: Path, folder: Path) -> Path:
    """The Hugging Face folder with the weights of the GGUF file."""
    call([python, HERE / "gguf_to_hf.py", gguf, folder], stdout=sys.stderr)
    return folder


TRAINING = ("torch", "transformers", "peft", "safetensors", "gguf")


def versions(python: Path, names: tuple[str, ...] = TRAINING) -> dict[str, str]:
    """The versions that are really there."""
    code = (
        "import importlib.metadata as m, json, platform; "
        f"print(json.dumps({{'python': platform.python_version(), **{{n: m.version(n) for n in {list(names)!r}}}}}))"
    )
    told = subprocess.run([str(python), "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(told.stdout)


def equipoise_version(binary: Path, built_here: bool) -> str:
    """The binary's version, and the commit of this checkout if it was built from it."""
    told = subprocess.run([str(binary), "--version"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    if not built_here:
        return f"{told} (a binary that was given)"
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    commit = git.stdout.strip()
    return f"{told} ({commit})" if commit else told


def takes_threads(binary: Path) -> bool:
    """Whether this binary has `--threads`; an older one reads RAYON_NUM_THREADS alone."""
    told = subprocess.run([str(binary), "train", "--help"], stdout=subprocess.PIPE, text=True)
    return "--threads" in told.stdout
