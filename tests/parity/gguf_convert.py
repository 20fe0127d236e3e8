#!/usr/bin/env python3
"""Write golden descriptions of GGUF files as llama.cpp's own converters make them.

    pip download --no-binary llama-cpp-python --no-deps llama-cpp-python==0.3.36
    tar xf llama_cpp_python-0.3.36.tar.gz
    pip install torch transformers peft gguf safetensors sentencepiece
    python tests/parity/gguf_convert.py llama_cpp_python-0.3.36/vendor/llama.cpp

It converts the embedded base (`--base`) and an adapter on it (`--adapter`) to F16 and F32 with convert_hf_to_gguf.py and
convert_lora_to_gguf.py, and writes to `--out`:

    base.json, adapter_f16.json, adapter_f32.json
        metadata    key -> type and value; of arrays the length and the SHA-256 of the elements
        tensors     name -> shape (outermost first), type, SHA-256 of the bytes
    rope_freqs.json
        what the converter computes for Llama 3's rotary scaling, for several parameters

The converter knows ways of splitting text by a hash of the token ids of a sample, so a vocabulary that it has never seen is
refused, however it splits. The embedded base is such a one. It splits as GPT-2 (its pre_tokenizer is ByteLevel with GPT-2's
pattern), so this script answers `gpt-2` where the converter would refuse. With `--model FOLDER --gguf-out FILE` any other
folder is converted in the same way, to compare by hand.
"""

import argparse
import hashlib
import json
import runpy
import struct
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

ROPE = [
    {"head_dim": 64, "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 8192},
    {"head_dim": 128, "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 8192},
    {"head_dim": 16, "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 64},
]


def run(llama_cpp, script, arguments):
    """Runs a converter in this process, answering `gpt-2` for unknown hashes."""
    sys.argv = [script, *map(str, arguments)]
    runpy.run_path(str(llama_cpp / script), run_name="__main__")


def answer_unknown_hashes(base_module):
    original = base_module.TextModel.get_vocab_base_pre

    def with_answer(self, tokenizer):
        try:
            return original(self, tokenizer)
        except NotImplementedError:
            print("the converter does not know this pre-tokenizer's hash; `gpt-2` is taken", file=sys.stderr)
            return "gpt-2"

    base_module.TextModel.get_vocab_base_pre = with_answer


def element_bytes(kind, value):
    """What of an array's element is hashed: text and a zero byte, or four bytes, little-endian."""
    formats = {"INT32": "<i", "UINT32": "<I", "FLOAT32": "<f"}
    return value.encode() + b"\0" if kind == "STRING" else struct.pack(formats[kind], value)


def described(gguf, path):
    reader = gguf.GGUFReader(path)
    metadata, tensors = {}, {}
    for key, field in reader.fields.items():
        if key.startswith("GGUF."):
            continue
        kinds, value = [kind.name for kind in field.types], field.contents()
        if kinds[0] == "ARRAY":
            digest = hashlib.sha256(b"".join(element_bytes(kinds[1], element) for element in value)).hexdigest()
            metadata[key] = {"type": f"ARRAY of {kinds[1]}", "length": len(value), "sha256": digest}
        else:
            metadata[key] = {"type": kinds[0], "value": value}
    for tensor in reader.tensors:
        tensors[tensor.name] = {
            "shape": [int(dimension) for dimension in reversed(tensor.shape)],
            "type": tensor.tensor_type.name,
            "sha256": hashlib.sha256(tensor.data.tobytes()).hexdigest(),
        }
    return {"metadata": metadata, "tensors": dict(sorted(tensors.items()))}


def rope_freqs(llama_module):
    cases = []
    for parameters in ROPE:
        parameters = dict(parameters)
        head_dim = parameters.pop("head_dim")
        model = SimpleNamespace(
            rope_parameters={"rope_type": "llama3", **parameters},
            hparams={"head_dim": head_dim},
            format_tensor_name=lambda key: "rope_freqs.weight",
        )
        ((_, factors),) = llama_module.LlamaModel.generate_extra_tensors(model)
        cases.append({"head_dim": head_dim, "rope_scaling": model.rope_parameters, "factors": factors.tolist()})
    return cases


def write(path, value, versions):
    path.write_text(json.dumps({"made_by": "tests/parity/gguf_convert.py", "versions": versions, **value}, indent=1) + "\n")
    print(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("llama_cpp", type=Path, help="llama.cpp's sources")
    parser.add_argument("--base", type=Path, default=Path("examples/gene_ontology/base"))
    parser.add_argument("--adapter", type=Path, default=Path("tests/golden/peft_adapter"))
    parser.add_argument("--out", type=Path, default=Path("tests/golden/export"))
    parser.add_argument("--model", type=Path, help="convert this folder to F16 and do nothing else")
    parser.add_argument("--gguf-out", type=Path, help="where the GGUF file of --model goes")
    args = parser.parse_args()
    sys.path[:0] = [str(args.llama_cpp), str(args.llama_cpp / "gguf-py")]
    import conversion.base
    import conversion.llama
    import gguf
    import torch
    import transformers

    answer_unknown_hashes(conversion.base)
    if args.model:
        run(args.llama_cpp, "convert_hf_to_gguf.py", [args.model, "--outfile", args.gguf_out, "--outtype", "f16"])
        return
    versions = {"llama.cpp": "as in llama-cpp-python 0.3.36", "torch": torch.__version__, "transformers": transformers.__version__}
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out.gguf"
        model = [args.base, "--outfile", path, "--outtype", "f16", "--model-name", "Gene Ontology"]
        run(args.llama_cpp, "convert_hf_to_gguf.py", model)
        write(args.out / "base.json", described(gguf, path), versions)
        for kind in ["f16", "f32"]:
            adapter = [args.adapter, "--base", args.base, "--outfile", path, "--outtype", kind]
            run(args.llama_cpp, "convert_lora_to_gguf.py", adapter)
            write(args.out / f"adapter_{kind}.json", described(gguf, path), versions)
    write(args.out / "rope_freqs.json", {"cases": rope_freqs(conversion.llama)}, versions)


if __name__ == "__main__":
    main()
