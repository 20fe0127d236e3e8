#!/usr/bin/env python3
"""A model of the first blocks of a larger one, both GGUF: real weights for a test that may not be large.

    python3 tests/gpu/cut_model.py MODEL.gguf --layers 10               into the current folder, under a name that says it
    python3 tests/gpu/cut_model.py MODEL.gguf --layers 10 --out FILE
    python3 tests/gpu/cut_model.py MODEL.gguf --sizes                   how large the file is for each number of blocks

Kept are the bytes of all metadata but the number of blocks, and of all tensors but those of the blocks that are left out.
"""

import argparse
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

try:
    import gguf
    import numpy
except ImportError as error:
    raise SystemExit(f"cut_model.py: no package {error.name}: pip install gguf") from error

BLOCK = re.compile(r"blk\.(\d+)\.")
QUANTIZATION = re.compile(r"(?P<stem>.+)[.-](?P<quantization>(?:I?Q\d|F16|F32|BF16|MXFP4)\w*)", re.IGNORECASE)
CHUNK = 1 << 24


class Model:
    """A GGUF file: its parts as bytes, and what they mean."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise SystemExit(f"cut_model.py: no such file: {path}")
        try:
            self.reader = gguf.GGUFReader(path)
        except (ValueError, KeyError, IndexError) as error:
            raise SystemExit(f"cut_model.py: {path} cannot be read as GGUF: {error}") from error
        self.path, self.bytes = path, self.reader.data
        self.key = f"{self.value('general.architecture')}.block_count"
        self.blocks = int(self.value(self.key))
        self.refuse_what_cannot_be_cut()

    def value(self, key: str) -> Any:
        field = self.reader.get_field(key)
        if field is None:
            raise SystemExit(f"cut_model.py: {self.path} has no {key}")
        return field.contents()

    def refuse_what_cannot_be_cut(self) -> None:
        """Numbers by layer would have to be cut too, and blocks of a split model lie in other files."""
        architecture = self.key.partition(".")[0]
        for key, field in self.reader.fields.items():
            if key.startswith(f"{architecture}.") and field.types[:1] == [gguf.GGUFValueType.ARRAY]:
                raise SystemExit(f"cut_model.py: {self.path}: {key} is a list; only plain models of Llama's kind can be cut")
        if self.reader.get_field("split.count") and self.value("split.count") > 1:
            raise SystemExit(f"cut_model.py: {self.path} is one of several files of a model")
        there = {int(found[1]) for tensor in self.reader.tensors if (found := BLOCK.match(tensor.name))}
        if there != set(range(self.blocks)):
            raise SystemExit(f"cut_model.py: {self.path} has not the tensors of {self.key} = {self.blocks} blocks")

    def metadata(self) -> Iterator[tuple[str, Any]]:
        """All that is not the head of the file."""
        return ((key, field) for key, field in self.reader.fields.items() if not key.startswith("GGUF."))

    def tensors(self, layers: int) -> list[Any]:
        """Those of the first blocks, and of no block."""
        blocks = ((BLOCK.match(tensor.name), tensor) for tensor in self.reader.tensors)
        return [tensor for found, tensor in blocks if not found or int(found[1]) < layers]

    def padded(self, size: int) -> int:
        return -(-size // self.reader.alignment) * self.reader.alignment

    def of_field(self, field: Any, last: int | None = None) -> bytes:
        """A field as it is in the file, with another last number if one is given."""
        parts = [part.tobytes() for part in field.parts]
        if last is not None:
            parts[-1] = numpy.array([last], dtype=field.parts[-1].dtype).tobytes()
        return b"".join(parts)

    def head(self, layers: int) -> bytes:
        """All before the tensors' bytes."""
        tensors, fields = self.tensors(layers), self.reader.fields
        head = self.bytes[:4].tobytes() + self.of_field(fields["GGUF.version"])
        head += self.of_field(fields["GGUF.tensor_count"], len(tensors)) + self.of_field(fields["GGUF.kv_count"])
        head += b"".join(self.of_field(field, layers if key == self.key else None) for key, field in self.metadata())
        offset = 0
        for tensor in tensors:
            head += self.of_field(tensor.field, offset)
            offset += self.padded(tensor.n_bytes)
        return head.ljust(self.padded(len(head)), b"\0")

    def size(self, layers: int) -> int:
        """Bytes of the file with so many blocks."""
        return len(self.head(layers)) + sum(self.padded(tensor.n_bytes) for tensor in self.tensors(layers))

    def write(self, layers: int, file: BinaryIO) -> None:
        file.write(self.head(layers))
        for tensor in self.tensors(layers):
            end = tensor.data_offset + tensor.n_bytes
            for start in range(tensor.data_offset, end, CHUNK):
                file.write(self.bytes[start : min(start + CHUNK, end)].tobytes())
            file.write(bytes(self.padded(tensor.n_bytes) - tensor.n_bytes))


def differences(whole: Model, part: Model, layers: int) -> Iterator[str]:
    """What is in the part but not as in the whole, the number of blocks apart."""
    before, after = dict(whole.metadata()), dict(part.metadata())
    if list(before) != list(after):
        yield "the metadata's keys"
    for key in before.keys() & after.keys():
        same = before[key].types == after[key].types and before[key].contents() == after[key].contents()
        if key != whole.key and not same:
            yield key
    if part.blocks != layers:
        yield f"{part.key} = {part.blocks}"
    expected = whole.tensors(layers)
    if [tensor.name for tensor in expected] != [tensor.name for tensor in part.reader.tensors]:
        yield "the tensors' names"
    for old, new in zip(expected, part.reader.tensors):
        same = old.tensor_type == new.tensor_type and old.shape.tolist() == new.shape.tolist()
        if not same or not numpy.array_equal(old.data.view(numpy.uint8), new.data.view(numpy.uint8)):
            yield old.name


def default_name(model: Path, layers: int) -> str:
    """`Name.Q4_1.gguf` becomes `Name-first-10-layers.Q4_1.gguf`."""
    named = QUANTIZATION.fullmatch(model.stem)
    cut = f"-first-{layers}-layers"
    return f"{named['stem']}{cut}.{named['quantization']}.gguf" if named else f"{model.stem}{cut}.gguf"


def cut(whole: Model, layers: int, out: Path) -> None:
    """Writes the file beside its place, reads it back, and moves it there."""
    if out.exists() and out.samefile(whole.path):
        raise SystemExit(f"cut_model.py: --out: {out} is the model itself")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".cut-") as folder:
        fresh = Path(folder) / "model.gguf"
        with fresh.open("wb") as file:
            whole.write(layers, file)
        wrong = list(differences(whole, Model(fresh), layers))
        if wrong or fresh.stat().st_size != whole.size(layers):
            raise SystemExit(f"cut_model.py: what was written is not as it was: {', '.join(wrong[:5]) or 'its size'}")
        fresh.replace(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, metavar="MODEL.gguf", help="a model of Llama's kind in one file")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--layers", type=int, metavar="N", help="how many blocks to keep, from the first on")
    what.add_argument("--sizes", action="store_true", help="only tell the bytes of a file with 1, 2, ... blocks")
    parser.add_argument("--out", type=Path, help="a file, or a folder that is there; else the current folder")
    args = parser.parse_args()
    whole = Model(args.model)
    if args.sizes:
        print(*(f"{layers} {whole.size(layers)}" for layers in range(1, whole.blocks + 1)), sep="\n")
        return
    if not 1 <= args.layers <= whole.blocks:
        parser.error(f"--layers: {args.model} has {whole.blocks} blocks, so N is from 1 to {whole.blocks}")
    out = args.out or Path()
    out = out / default_name(args.model, args.layers) if out.is_dir() else out
    try:
        cut(whole, args.layers, out)
    except OSError as error:
        raise SystemExit(f"cut_model.py: {out} cannot be written: {error}") from error
    print(f"{out}: {args.layers} of {whole.blocks} blocks, {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
