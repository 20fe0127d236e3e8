"""`model.gguf` of the tiny models by llama.cpp's own converter, and llama.cpp's logits for them.

The converter wants a tokenizer beside each model. Two made here serve all: a byte-level BPE over ASCII, and a SentencePiece
model for the families whose converters want one. They are in OUT/tokenizers, not in the models' folders.

As a program it asks llama-cpp-python for what `expected.json` says, and prints the differences. llama.cpp rounds activations
to bfloat16 where the weights are; with its sources named too, the models are converted to float32 for the comparison:

    python tests/parity/family_gguf.py --out tests/golden/families [--llama-cpp DIR] [--only NAME ...]
"""

import argparse
import io
import json
import os
import runpy
import shutil
import sys
import tempfile
from pathlib import Path

TEXT = "the gene is expressed in the cell, and the protein binds to the receptor of the membrane. "
SPECIAL = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>"]


def byte_level(folder):
    """A byte-level BPE of ASCII's printable characters, line ends, and some forty merges."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    characters = [word for byte in [*range(32, 127), 10] for word, _ in split.pre_tokenize_str(chr(byte))]
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *characters])}
    merges = []
    for word, _ in split.pre_tokenize_str(TEXT * 2):
        # From left to right, until the word is one token.
        for end in range(1, len(word)):
            pair = word[:end], word[end]
            if pair not in merges and len(vocabulary) < 160:
                merges.append(pair)
                vocabulary[word[: end + 1]] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = split, decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": SPECIAL[0], "eos_token": SPECIAL[0]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def sentence_piece(folder):
    """A SentencePiece BPE without byte pieces, its special tokens numbered as Gemma's; llama.cpp wants a fifth for Phi-3."""
    import sentencepiece

    # A writer, since the model would hold the path that it was written to.
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT, TEXT.upper(), "0123456789"]), model_writer=file, vocab_size=90,
        model_type="bpe", pad_id=0, eos_id=1, bos_id=2, unk_id=3, control_symbols=[SPECIAL[0]], hard_vocab_limit=False,
        normalization_rule_name="identity", character_coverage=1.0, minloglevel=2, num_threads=1,
    )
    (folder / "tokenizer.model").write_bytes(file.getvalue())


def tokenizers(out):
    """Writes both, once."""
    for name, write in (("byte_level", byte_level), ("sentencepiece", sentence_piece)):
        folder = out / "tokenizers" / name
        if not folder.exists():
            folder.mkdir(parents=True)
            write(folder)


def patch_converter():
    """What the converter refuses or reads wrongly in these models."""
    import conversion.base
    import conversion.granite

    known = conversion.base.TextModel.get_vocab_base_pre

    def gpt2_if_unknown(self, tokenizer):
        try:
            return known(self, tokenizer)
        except NotImplementedError:
            return "gpt-2"

    conversion.base.TextModel.get_vocab_base_pre = gpt2_if_unknown
    # It looks for layers of type `attention`; transformers 5 calls them `full_attention`.
    conversion.granite.GraniteHybridModel.get_attn_layers = lambda self: list(range(self.block_count))


def convert(family, folder, out, llama_cpp, file, kind="bf16"):
    """Writes `file` from the model in `folder`."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    tokenizers(out)
    for path in (str(llama_cpp), str(llama_cpp / "gguf-py")):
        if path not in sys.path:
            sys.path.insert(0, path)
    patch_converter()
    with tempfile.TemporaryDirectory() as place:
        place = Path(place) / folder.name
        shutil.copytree(out / "tokenizers" / ("sentencepiece" if family.sentencepiece else "byte_level"), place)
        for name in ("config.json", "model.safetensors"):
            shutil.copy(folder / name, place)
        arguments = [place, "--outfile", file, "--outtype", kind, "--model-name", folder.name]
        kept, sys.argv = sys.argv, ["convert_hf_to_gguf.py", *map(str, arguments)]
        try:
            runpy.run_path(str(llama_cpp / "convert_hf_to_gguf.py"), run_name="__main__")
        finally:
            sys.argv = kept


def logits(llama, ids):
    """The logits of the last position, `[vocab]`."""
    llama.reset()
    llama.eval(ids)
    return llama.scores[len(ids) - 1].astype("float64")


def compare(file, prompts, longrope):
    """The largest difference of the logits, relative to the largest logit, and how many greedy tokens are the same."""
    import llama_cpp
    import numpy as np

    # llama.cpp chooses longrope's factors by the length that it was opened for: 256 at least.
    original = {"phi3.rope.scaling.original_context_length": 4096 if longrope == "short" else 64} if longrope else None
    llama = llama_cpp.Llama(
        str(file), n_ctx=256, logits_all=True, verbose=False, n_threads=1, n_threads_batch=1, flash_attn=False,
        type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32, kv_overrides=original,
    )
    worst, agree, total = 0.0, 0, 0
    for one in prompts:
        ids, right = one["input_ids"], np.array(one["last_logits"])
        worst = max(worst, float(np.abs(logits(llama, ids) - right).max() / np.abs(right).max()))
        for i, token in enumerate(one["greedy"]):
            agree += int(logits(llama, ids + one["greedy"][:i]).argmax() == token)
            total += 1
    return worst, agree, total


def as_llama_cpp(name, family, out, prompts):
    """The prompts with what transformers gives for the model as llama.cpp takes it."""
    import families

    with families.float64_throughout():
        model = families.load(family, out / name, family.llama_cpp or family.gguf)
        taken = [{"ids": one["input_ids"], "pad_to": 0} for one in prompts]
        for one in taken:
            one["greedy"], one["gap"] = families.greedy(model, one["ids"], 0)
        return families.expected_of(model, taken)


def compare_family(name, family, out, llama_cpp):
    with tempfile.TemporaryDirectory() as place:
        file = out / name / "model.gguf"
        if llama_cpp:
            file = Path(place) / "model.gguf"
            convert(family, out / name, out, llama_cpp, file, "f32")
        for suffix in ["", "_long"] if family.long_lengths else [""]:
            longrope = (suffix.strip("_") or "short") if family.long_lengths else ""
            prompts = json.loads((out / name / f"expected{suffix}.json").read_text())["prompts"]
            asked = [("", prompts)]
            if family.llama_cpp or family.gguf:
                asked.append((", against transformers with the same left out", as_llama_cpp(name, family, out, prompts)))
            for what, right in asked:
                try:
                    worst, agree, total = compare(file, right, longrope)
                    told = f"logits differ by {worst:.1e} of the largest, {agree} of {total} greedy tokens are the same"
                except Exception as error:  # whatever llama.cpp says, the next one is asked
                    told = f"{type(error).__name__}: {error}"
                print(f"{name}{suffix}{what}: {told}", flush=True)


def main():
    import torch
    from family_specs import FAMILIES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--llama-cpp", type=Path)
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.only:
        compare_family(name, FAMILIES[name], args.out, args.llama_cpp)


if __name__ == "__main__":
    main()
