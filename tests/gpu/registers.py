#!/usr/bin/env python3
"""Registers, shared memory, stack and spills of each kernel, as NVIDIA's compiler gives them. No GPU is needed.

    python3 tests/gpu/registers.py            Markdown, on stdout
    python3 tests/gpu/registers.py --write    also into REGISTERS.md

The compiler, NVRTC, is the one that the program itself loads; it comes from PyPI and is called as the program calls it.
The exit code is 1 if a kernel in bf16 spills more than a few bytes (SPILLS_ALLOWED), so this can be used as a check.
"""

import argparse
import ctypes
import hashlib
import re
import shlex
import struct
import subprocess
import sys
import tempfile
import textwrap
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CUDA = ROOT / "src" / "ops" / "cuda"
REPORT = HERE / "REGISTERS.md"
PACKAGE = "nvidia-cuda-nvrtc==13.0.*"
ARCHITECTURES = (75, 80, 86, 89, 90, 120)
F32_ONLY = 75
"""There kernels in bf16 are never used."""
HEADS = (64, 80, 96, 128, 256)
GOAL_HEAD = 128
"""The widest heads that the first line of the report speaks of."""
ATTENTION_DEFINES = '("HEAD_DIM", head_dim), ("PLAIN", usize::from(plain))'
SPILLS_ALLOWED = 16
"""Bytes of a thread, stored and loaded, that do not count: a register or two, once."""

REGISTERS = 65536
"""Of a multiprocessor, each architecture here."""
SHARED_KIB = {80: 164, 86: 100, 89: 100, 90: 228, 120: 100}
"""Of a multiprocessor. Source: see SOURCE."""
RESERVED_BYTES = 1024
"""What CUDA takes of the shared memory for each block, beside what the block asks for."""
SOURCE = (
    "NVIDIA, CUDA Programming Guide, appendix "
    "[Compute Capabilities](https://docs.nvidia.com/cuda/cuda-programming-guide/05-appendices/compute-capabilities.html): "
    "65,536 registers of 32 bits each, shared memory of "
    + ", ".join(f"{kib} KiB ({name // 10}.{name % 10})" for name, kib in SHARED_KIB.items())
    + ". The KiB that CUDA keeps of each block's: NVIDIA's tuning guides for Ampere, Ada and Hopper."
)
SIZES = {
    "attention_f32": "F32_FORWARD_BYTES",
    "attention_backward_queries_f32": "F32_BACKWARD_BYTES",
    "attention_backward_keys_f32": "F32_BACKWARD_BYTES",
    "attention_bf16": "BF16_FORWARD_BYTES",
    "attention_backward_queries_bf16": "BF16_QUERIES_BYTES",
    "attention_backward_keys_bf16": "BF16_KEYS_BYTES",
}
"""The kernels with dynamic shared memory, and how attention_common.cuh calls the sizes that `sizes` in attention.rs gives them."""


class Heads(NamedTuple):
    """What attention is compiled for: the width of heads, and whether there is no cap and no window."""

    width: int
    plain: bool

    def of(self, kernel: str) -> str:
        """A kernel's name in a table."""
        return kernel if self.plain else f"{kernel}, limited"


@dataclass(frozen=True)
class Program:
    """A program as ops/cuda/programs.rs puts it together."""

    name: str
    parts: tuple[str, ...]
    has_heads: bool

    def text(self, heads: Heads | None, parts: int | None = None) -> str:
        """The source, or its first parts, behind its defines."""
        define = f"#define HEAD_DIM {heads.width}\n#define PLAIN {heads.plain:d}\n" if self.has_heads and heads else ""
        return define + "".join((CUDA / part).read_text() for part in self.parts[:parts])


@dataclass(frozen=True)
class Usage:
    """What a kernel takes: registers of a thread; bytes of a thread, but for shared memory, which is a block's."""

    registers: int
    shared: int
    stack: int
    stores: int
    loads: int

    def spills(self) -> bool:
        return self.stores + self.loads > 0

    def cell(self) -> str:
        return f"{self.registers} ({self.stores}+{self.loads})" if self.spills() else str(self.registers)


Found = dict[tuple[str, Heads | None, int], Usage]
"""By kernel, heads, architecture."""


def programs() -> list[Program]:
    """What programs.rs says: each function that makes a program, with its files in their order."""
    text = expanded((CUDA / "programs.rs").read_text())
    files = dict(re.findall(r'const (\w+): &str =\s*include_str!\("([^"]+)"\);', text))
    found = []
    for body in re.findall(r"\bfn \w+\([^)]*\) -> Program \{\n(.*?)\n\}", text, re.DOTALL):
        name = re.search(r'Program \{\s*name: "(\w+)"', body)
        words = re.findall(r'include_str!\("([^"]+)"\)|\b([A-Z][A-Z_]+)\b(?=\s*,)', body)
        parts = tuple(file or files.get(constant, "") for file, constant in words)
        defines = re.search(r"defines: (Vec::new\(\)|vec!\[(.*?)\]),?\s*\}", body)
        if not name or not parts or "" in parts or not defines or defines[2] not in (None, ATTENTION_DEFINES):
            raise SystemExit(f"src/ops/cuda/programs.rs is no longer written as registers.py reads it:\n{body}")
        found.append(Program(name[1], parts, defines[2] is not None))
    names = [program.name for program in found]
    if not {"dequantize", "rows", "families", "objectives", "adamw", "attention"} <= set(names):
        raise SystemExit(f"src/ops/cuda/programs.rs: only found {', '.join(names) or 'nothing'}")
    return found


def expanded(text: str) -> str:
    """The text, with the macro of programs of one form in the place of its calls."""
    macro = re.search(r"macro_rules! (\w+) \{\n    \(\$name:literal\) => \{\n(.*?)\n    \};\n\}\n", text, re.DOTALL)
    if not macro:
        raise SystemExit("src/ops/cuda/programs.rs: its macro is no longer written as registers.py reads it")

    def body(call: re.Match[str]) -> str:
        file = re.sub(r'concat!\("(\S+)", \$name, "(\S+)"\)', rf'"\g<1>{call[1]}\g<2>"', macro[2])
        return file.replace("$name", f'"{call[1]}"')

    return re.sub(rf'\b{macro[1]}!\("(\w+)"\)', body, text)


def digest() -> str:
    """What tells these sources from others."""
    return hashlib.sha256("".join(program.text(None) for program in programs()).encode()).hexdigest()[:16]


# --- the compiler


class Nvrtc:
    """NVIDIA's compiler. Its companion is loaded first: the library does not find it beside itself."""

    def __init__(self, library: Path) -> None:
        ctypes.CDLL(str(next(library.parent.glob("libnvrtc-builtins.so.*"))), ctypes.RTLD_GLOBAL)
        self.dll = ctypes.CDLL(str(library))
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self.version = f"{major.value}.{minor.value}"

    def call(self, name: str, *arguments: object) -> None:
        status = getattr(self.dll, name)(*arguments)
        if status != 0:
            raise SystemExit(f"{name}: error {status}")

    def bytes_of(self, what: str, program: ctypes.c_void_p) -> bytes:
        """The log, the CUBIN or the PTX of a program."""
        size = ctypes.c_size_t()
        self.call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self.call(f"nvrtcGet{what}", program, buffer)
        return buffer.raw

    def compile(self, text: str, file: str, options: list[str], what: str) -> tuple[bytes, str]:
        """The CUBIN or the PTX, and the log."""
        program = ctypes.c_void_p()
        self.call("nvrtcCreateProgram", ctypes.byref(program), text.encode(), file.encode(), 0, None, None)
        words = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        status = self.dll.nvrtcCompileProgram(program, len(options), words)
        log = self.bytes_of("ProgramLog", program).rstrip(b"\0").decode()
        if status != 0:
            raise SystemExit(f"compiling {file} {' '.join(options)}: error {status}\n{log}")
        image = self.bytes_of(what, program)
        self.call("nvrtcDestroyProgram", ctypes.byref(program))
        return image, log


def find_library(folder: Path) -> Path | None:
    return next(folder.rglob("libnvrtc.so.13"), None)


def install(folder: Path) -> Path:
    """NVRTC in this folder, fetched from PyPI if it is not there yet."""
    if library := find_library(folder):
        return library
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), PACKAGE]
    print(f"+ {shlex.join(command)}", file=sys.stderr)
    if subprocess.run(command, check=False).returncode != 0:
        raise SystemExit(f"NVRTC could not be installed; by hand: pip install --no-deps --target FOLDER '{PACKAGE}'")
    if library := find_library(folder):
        return library
    raise SystemExit(f"{PACKAGE} has no libnvrtc.so.13")


# --- what a program takes


def sections(elf: bytes) -> dict[str, bytes]:
    """The sections of a CUBIN, a 64-bit ELF, that hold code."""
    table, size, count, names_index = *struct.unpack_from("<Q", elf, 40), *struct.unpack_from("<HHH", elf, 58)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + index * size) for index in range(count)]
    names = headers[names_index][4]
    found = {}
    for name, _, _, _, offset, length in headers:
        start = names + name
        word = elf[start : elf.index(b"\0", start)].decode()
        if word.startswith(".text."):
            found[word] = elf[offset : offset + length]
    return found


def usages(log: str) -> Iterator[tuple[str, Usage]]:
    """What the assembler inside NVRTC says of each kernel."""
    for part in log.split("Compiling entry function '")[1:]:
        frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        used = re.search(r"Used (\d+) registers.*", part)
        if not frame or not used:
            raise SystemExit(f"NVRTC's log is no longer written as registers.py reads it:\n{part}")
        shared = re.search(r"(\d+) bytes smem", used[0])
        stack, stores, loads = map(int, frame.groups())
        yield part.partition("'")[0], Usage(int(used[1]), int(shared[1]) if shared else 0, stack, stores, loads)


def compiled(nvrtc: Nvrtc, program: Program, heads: Heads | None, architecture: int) -> dict[str, Usage]:
    """All kernels of a program. It is compiled as the product does, and once more for the log; the code must be the same."""
    text, file, option = program.text(heads), f"{program.name}.cu", f"--gpu-architecture=sm_{architecture}"
    silent, _ = nvrtc.compile(text, file, [option], "CUBIN")
    told, log = nvrtc.compile(text, file, [option, "--ptxas-options=-v"], "CUBIN")
    code, found = sections(silent), dict(usages(log))
    if code != sections(told) or {f".text.{kernel}" for kernel in found} != set(code):
        raise SystemExit(f"{file} sm_{architecture}: with a log NVRTC makes other code than without")
    return found


def all_usages(nvrtc: Nvrtc) -> Found:
    found: Found = {}
    every = [Heads(width, plain) for width in HEADS for plain in (True, False)]
    for program in programs():
        for heads in every if program.has_heads else (None,):
            print(f"{program.name} {heads or ''}", file=sys.stderr)
            for architecture in ARCHITECTURES:
                for kernel, usage in compiled(nvrtc, program, heads, architecture).items():
                    if architecture != F32_ONLY or not kernel.endswith("_bf16"):
                        found[kernel, heads, architecture] = usage
    return found


def attention_sizes(nvrtc: Nvrtc, width: int) -> dict[str, int]:
    """Threads of a block, and bytes of dynamic shared memory by kernel: attention_common.cuh's, worked out by the compiler."""
    attention = next(program for program in programs() if program.name == "attention")
    names = ["BF16_THREADS", *dict.fromkeys(SIZES.values())]
    text = attention.text(Heads(width, plain=True), parts=2) + "".join(f'extern "C" __device__ u32 TOLD_{name} = {name};\n' for name in names)
    ptx, _ = nvrtc.compile(text, "sizes.cu", ["--gpu-architecture=compute_80"], "PTX")
    told = dict(re.findall(r"TOLD_(\w+) = (\d+);", ptx.decode()))
    if set(told) != set(names):
        raise SystemExit(f"attention_common.cuh: {', '.join(sorted(set(names) - set(told)))} could not be read")
    return {"threads": int(told["BF16_THREADS"]), **{kernel: int(told[name]) for kernel, name in SIZES.items()}}


def blocks_by_registers(usage: Usage, threads: int) -> int:
    """Each of four parts of a multiprocessor has a quarter of its registers, and warps get them by 256."""
    of_a_warp = -(-usage.registers * 32 // 256) * 256
    warps = REGISTERS // 4 // of_a_warp * 4
    return warps // (threads // 32)


def blocks_by_shared(usage: Usage, dynamic: int, architecture: int) -> int:
    return SHARED_KIB[architecture] * 1024 // (usage.shared + dynamic + RESERVED_BYTES)


# --- the report


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown; all columns but the first are aligned to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def columns(architectures: tuple[int, ...] = ARCHITECTURES) -> list[str]:
    return [f"sm_{architecture}" for architecture in architectures]


def largest(several: list[Usage]) -> Usage:
    """The most of each number."""
    names = ("registers", "shared", "stack", "stores", "loads")
    return Usage(*(max(getattr(usage, name) for usage in several) for name in names))


def usage_rows(groups: dict[str, dict[int, Usage]], beside: dict[str, str] | None = None) -> list[list[str]]:
    """A line for each kernel or group of kernels; `beside` has its dynamic shared memory."""
    rows = []
    for name, by_architecture in groups.items():
        cells = [by_architecture[each].cell() if each in by_architecture else "–" for each in ARCHITECTURES]
        shared = [str(max(usage.shared for usage in by_architecture.values()))]
        rows.append([name, *cells, *shared, *([beside.get(name, "0")] if beside is not None else [])])
    return rows


def grouped(found: Found, group_of: dict[str, str], heads: Heads | None = None) -> dict[str, dict[int, Usage]]:
    """Usages by group and architecture, the largest of the group's kernels."""
    collected: dict[str, dict[int, list[Usage]]] = defaultdict(lambda: defaultdict(list))
    for (kernel, of, architecture), usage in found.items():
        if of == heads and kernel in group_of:
            collected[group_of[kernel]][architecture].append(usage)
    return {name: {each: largest(all_of) for each, all_of in by.items()} for name, by in collected.items()}


def attention_part(found: Found, sizes: dict[int, dict[str, int]]) -> Iterator[str]:
    yield "## Attention\n"
    yield (
        "A program without caps and windows, and one with them (limited). A kernel has a line of its own in the second where it "
        "is another there.\n"
    )
    kernels = list(dict.fromkeys(kernel for kernel, heads, _ in found if heads is not None))
    kernels.sort(key=lambda kernel: (kernel.endswith("_bf16"), kernel))
    for width in HEADS:
        dynamic, groups = {}, {}
        plain, limited = (grouped(found, {kernel: kernel for kernel in kernels}, Heads(width, each)) for each in (True, False))
        for kernel in kernels:
            for heads, usages_of in ((Heads(width, True), plain[kernel]), (Heads(width, False), limited[kernel])):
                if heads.plain or usages_of != plain[kernel]:
                    groups[heads.of(kernel)] = usages_of
                    dynamic[heads.of(kernel)] = f"{sizes[width].get(kernel, 0):,}"
        rows = usage_rows(groups, dynamic)
        yield f"Heads of {width}:\n"
        yield table(["kernel", *columns(), "static shared", "dynamic shared"], rows)


def blocks_part(found: Found, sizes: dict[int, dict[str, int]]) -> Iterator[str]:
    yield "## Blocks on a multiprocessor: attention in bf16\n"
    threads = {size["threads"] for size in sizes.values()}
    yield (
        f"Blocks of {', '.join(map(str, threads))} threads that fit at once (by registers; by shared memory, "
        f"{RESERVED_BYTES:,} bytes more for each block). Warps: times {max(threads) // 32}.\n"
    )
    rows = []
    for width in HEADS:
        for kernel in (kernel for kernel in SIZES if kernel.endswith("_bf16")):
            lines = {}
            for heads in (Heads(width, True), Heads(width, False)):
                cells = []
                for architecture in SHARED_KIB:
                    usage = found[kernel, heads, architecture]
                    registers = blocks_by_registers(usage, sizes[width]["threads"])
                    shared = blocks_by_shared(usage, sizes[width][kernel], architecture)
                    cells.append(f"{min(registers, shared)} ({registers}; {shared})")
                lines[heads.of(kernel)] = cells
            same = len({tuple(cells) for cells in lines.values()}) == 1
            rows += [[f"{width}, {name}", *cells] for name, cells in list(lines.items())[: 1 if same else 2]]
    yield table(["heads, kernel", *columns(tuple(SHARED_KIB))], rows)
    yield SOURCE + " Registers go to warps by 256, from one of the four quarters of a multiprocessor's.\n"


def other_parts(found: Found) -> Iterator[str]:
    kernels = list(dict.fromkeys(kernel for kernel, heads, _ in found if heads is None))
    dequantize = [kernel for kernel in kernels if kernel.startswith("dequantize_")]
    others = sorted(set(kernels) - set(dequantize), key=lambda kernel: (kernel.endswith("_bf16"), kernel))
    yield "## Rows, loss, optimizer\n"
    yield table(["kernel", *columns(), "static shared"], usage_rows(ordered(found, {each: each for each in others})))
    yield "## Dequantization\n"
    yield f"The larger of both outputs, f32 and bf16 (sm_{F32_ONLY}: f32 alone).\n"
    types = {kernel: kernel.removeprefix("dequantize_").rpartition("_")[0] for kernel in dequantize}
    yield table(["type", *columns(), "static shared"], usage_rows(ordered(found, dict(sorted(types.items())))))


def ordered(found: Found, group_of: dict[str, str]) -> dict[str, dict[int, Usage]]:
    """Groups in the order that they are named in."""
    groups = grouped(found, group_of)
    return {name: groups[name] for name in dict.fromkeys(group_of.values())}


def spilling(found: Found) -> list[tuple[str, Heads | None, int]]:
    """Kernels in bf16 that spill more than a few bytes."""
    of_bf16 = {key: usage for key, usage in found.items() if key[0].endswith("_bf16")}
    return [key for key, usage in of_bf16.items() if usage.stores + usage.loads > SPILLS_ALLOWED]


def verdict(found: Found) -> str:
    """The first line."""
    bad = [key for key in spilling(found) if key[1] is None or key[1].width <= GOAL_HEAD]
    if not bad:
        where = f"at heads up to {GOAL_HEAD}, on {', '.join(columns(ARCHITECTURES[1:]))}"
        return f"**No kernel in bf16 spills more than {SPILLS_ALLOWED} bytes, {where}.**\n"
    named = [(heads.of(kernel) if heads else kernel, heads, each) for kernel, heads, each in bad]
    names = "; ".join(f"{name}{f' (heads of {heads.width})' if heads else ''} on sm_{each}" for name, heads, each in named)
    return f"**Kernels in bf16 spill more than {SPILLS_ALLOWED} bytes at heads up to {GOAL_HEAD}: {names}.**\n"


def stack_part(found: Found) -> Iterator[str]:
    yield "## Stack and spills\n"
    rows = [
        [
            heads.of(kernel) if heads else kernel,
            str(heads.width) if heads else "",
            f"sm_{architecture}",
            *map(str, (usage.stack, usage.stores, usage.loads)),
        ]
        for (kernel, heads, architecture), usage in found.items()
        if usage.stack or usage.spills()
    ]
    if rows:
        yield "All that have any, in bytes of a thread:\n"
        yield table(["kernel", "heads", "on", "stack", "spill stores", "spill loads"], rows)
    else:
        yield "None has any.\n"


def document(found: Found, sizes: dict[int, dict[str, int]], compiler: str) -> str:
    intro = (
        f"By `python3 tests/gpu/registers.py --write` with {compiler}. Each program is compiled to a CUBIN with one option, "
        f"`--gpu-architecture=sm_NN`, as the product does it, and once more with `--ptxas-options=-v`, for the log that these "
        f"numbers are from; the code of both is compared, and is the same. No GPU took part. SHA-256 of the sources: "
        f"{digest()}.\n\n"
        f"Cells: registers of a thread, and in brackets, where it spills, bytes of spill stores + loads. Shared memory is in "
        f"bytes of a block. On sm_{F32_ONLY} kernels in bf16 are not used (–).\n"
    )
    parts = [verdict(found), "# Registers of the kernels\n", intro, *stack_part(found), *attention_part(found, sizes)]
    return "\n".join(wrapped(part) for part in [*parts, *blocks_part(found, sizes), *other_parts(found)])


def wrapped(part: str) -> str:
    """Paragraphs in lines; tables as they are."""
    if part.startswith("|"):
        return part
    paragraphs = part.rstrip("\n").split("\n\n")
    return "\n\n".join(textwrap.fill(each, 130, break_long_words=False, break_on_hyphens=False) for each in paragraphs) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cuda", type=Path, help=f"where {PACKAGE} is, or is to be installed; else a temporary folder")
    parser.add_argument("--write", action="store_true", help=f"also into {REPORT.relative_to(ROOT)}")
    args = parser.parse_args()
    programs()  # What it cannot read shows before anything is fetched.
    with tempfile.TemporaryDirectory() as temporary:
        library = install(args.cuda.resolve() if args.cuda else Path(temporary))
        nvrtc = Nvrtc(library)
        package = next((path.name for path in library.parents[3].glob("nvidia_cuda_nvrtc-*.dist-info")), "")
        version = re.search(r"-([\d.]+)\.dist-info", package)
        found, sizes = all_usages(nvrtc), {width: attention_sizes(nvrtc, width) for width in HEADS}
    exact = f" (nvidia-cuda-nvrtc {version[1]})" if version else ""
    text = document(found, sizes, f"NVRTC {nvrtc.version}{exact}")
    print(text, end="")
    if args.write:
        fresh = REPORT.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(REPORT)
    raise SystemExit(1 if spilling(found) else 0)


if __name__ == "__main__":
    main()
