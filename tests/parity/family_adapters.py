#!/usr/bin/env python3
"""Describe what llama.cpp's converter makes of the adapters in `tests/golden/families`.

    python tests/parity/family_adapters.py --llama-cpp llama_cpp_python-0.3.36/vendor/llama.cpp

It converts `adapter` of each family to f32 with convert_lora_to_gguf.py and writes `tests/golden/export/family_adapters.json`:
for each family the architecture, and of each tensor the shape (outermost first) and the SHA-256 of its bytes. The models have no
tokenizer: the converter is told to write none, and finds a placeholder where it only counts tokens. Ministral 3 is left out: of it
this converter writes the model's own tensors.
"""

import argparse
import hashlib
import json
import runpy
import shutil
import sys
import tempfile
from pathlib import Path


def leave_out_vocabularies(model_class):
    if "set_vocab" in model_class.__dict__:
        model_class.set_vocab = lambda self: self.gguf_writer.add_tokenizer_model("none")
    for subclass in model_class.__subclasses__():
        leave_out_vocabularies(subclass)


def described(gguf, path):
    reader = gguf.GGUFReader(path)
    tensors = {
        tensor.name: {
            "shape": [int(dimension) for dimension in reversed(tensor.shape)],
            "sha256": hashlib.sha256(tensor.data.tobytes()).hexdigest(),
        }
        for tensor in reader.tensors
    }
    return {"architecture": reader.fields["general.architecture"].contents(), "tensors": dict(sorted(tensors.items()))}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-cpp", type=Path, required=True)
    parser.add_argument("--families", type=Path, default=Path("tests/golden/families"))
    parser.add_argument("--out", type=Path, default=Path("tests/golden/export/family_adapters.json"))
    args = parser.parse_args()
    sys.path[:0] = [str(args.llama_cpp), str(args.llama_cpp / "gguf-py")]
    import conversion
    import conversion.base
    import conversion.granite
    import gguf

    conversion.load_all_models()
    leave_out_vocabularies(conversion.base.TextModel)
    # It looks for layers of type `attention`; transformers 5 calls them `full_attention`.
    conversion.granite.GraniteHybridModel.get_attn_layers = lambda self: list(range(self.block_count))
    families = {}
    for family in sorted(path for path in args.families.iterdir() if (path / "adapter").is_dir() and path.name != "ministral3"):
        with tempfile.TemporaryDirectory() as temporary:
            base, out = Path(temporary) / "base", Path(temporary) / "adapter.gguf"
            base.mkdir()
            for name in ("config.json", "model.safetensors"):
                shutil.copy(family / name, base / name)
            config = json.loads((base / "config.json").read_text())
            size = config.get("text_config", config)["vocab_size"]
            tokenizer = {"model": {"vocab": {str(i): i for i in range(size)}}, "added_tokens": []}
            (base / "tokenizer.json").write_text(json.dumps(tokenizer))
            sys.argv = ["", str(family / "adapter"), "--base", str(base), "--outfile", str(out), "--outtype", "f32"]
            runpy.run_path(str(args.llama_cpp / "convert_lora_to_gguf.py"), run_name="__main__")
            families[family.name] = described(gguf, out)
    report = {"made_by": "tests/parity/family_adapters.py", "versions": {"llama.cpp": "as in llama-cpp-python 0.3.36"}}
    args.out.write_text(json.dumps({**report, "families": families}, indent=1) + "\n")


if __name__ == "__main__":
    main()
