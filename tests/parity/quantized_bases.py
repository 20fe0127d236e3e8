#!/usr/bin/env python3
"""Write tiny bases in the formats that are quantized already, and what others make of them.

- nf4: a Llama whose linear layers bitsandbytes quantized, as its `Linear4bit` saves them: under double quantization, without,
  and in blocks of 128; `o_proj` is left in bf16, as in Unsloth's dynamic folders.
- nf4_rows: matrices whose rows are no whole blocks, of each type that a state can name, and codes stored as bf16.
- fp8: matrices of all codes of E4M3, with a scale for all, for a row, and for 128 x 128.
- iq4.gguf: a Llama in IQ4_NL and IQ4_XS of random blocks, written and read by gguf-py.

    python quantized_bases.py --out tests/golden/quantized

Each comes with the SHA-256 of the dequantized numbers (little-endian, in the type named), and the first eight of them: of
bitsandbytes' `dequantize_4bit`, torch's float8_e4m3fn times the scale, and `gguf.quants.dequantize`. bitsandbytes is asked for
f32 where our NF4 is kept, for that is what is rounded last.
"""

import argparse
import hashlib
import json
from pathlib import Path

import bitsandbytes
import bitsandbytes.functional as bnb
import gguf
import numpy as np
import torch
from safetensors.torch import save_file

GENERATOR = torch.Generator().manual_seed(5)
NF4 = {"hidden_size": 64, "intermediate_size": 272, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 96}
IQ4 = {"hidden": 32, "intermediate": 256, "heads": 2, "vocabulary": 96}


def normal(*shape, scale=1.0):
    return torch.randn(*shape, generator=GENERATOR) * scale


def golden(numbers, dtype):
    """The hash of the numbers in a type, and some to look at."""
    raw = numbers.contiguous().view(torch.uint8) if dtype != "f32" else numbers.contiguous().float().view(torch.uint8)
    first = numbers.flatten()[:8].float().tolist()
    return {"dtype": dtype, "sha256": hashlib.sha256(raw.numpy().tobytes()).hexdigest(), "first": first}


def quantized(tensors, expected, name, weight, blocksize=64, double=True, storage=torch.uint8, kept=True):
    """A weight as bitsandbytes saves it. `kept`: dequantized to f32; else to the type that the state names."""
    codes, state = bnb.quantize_4bit(
        weight, blocksize=blocksize, compress_statistics=double, quant_type="nf4", quant_storage=storage
    )
    tensors[name] = codes
    for part, tensor in state.as_dict(packed=True).items():
        tensors[f"{name}.{part}"] = tensor
    if kept:
        state.dtype = torch.float32
    kinds = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
    numbers = bnb.dequantize_4bit(codes, state)
    assert numbers.shape == weight.shape
    # The formula of the documentation, number by number.
    absmax = state.absmax
    if double:
        outer = state.state2.absmax.repeat_interleave(state.state2.blocksize)[: absmax.numel()]
        absmax = state.state2.code[absmax.long()] * outer + state.offset
    flat = codes.contiguous().view(torch.uint8).flatten()
    nibbles = torch.stack([flat >> 4, flat & 15], 1).flatten()[: weight.numel()]
    formula = state.code[nibbles.long()] * absmax.repeat_interleave(blocksize)[: weight.numel()]
    assert torch.equal(formula.to(numbers.dtype).reshape(weight.shape), numbers), name
    expected[name] = golden(numbers, kinds[numbers.dtype])


def config(folder, **more):
    folder.mkdir(parents=True, exist_ok=True)
    text = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": 1,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        **NF4,
        **more,
    }
    (folder / "config.json").write_text(json.dumps(text, indent=1) + "\n")


def write(folder, tensors, expected):
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def nf4(folder):
    bnb_config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
                  "bnb_4bit_compute_dtype": "bfloat16", "bnb_4bit_quant_storage": "uint8", "llm_int8_skip_modules": ["lm_head"]}
    config(folder, quantization_config=bnb_config)
    hidden, intermediate = NF4["hidden_size"], NF4["intermediate_size"]
    tensors, expected = {}, {}
    layer = "model.layers.0"
    tensors["model.embed_tokens.weight"] = normal(NF4["vocab_size"], hidden).bfloat16()
    for norm in ["model.norm", f"{layer}.input_layernorm", f"{layer}.post_attention_layernorm"]:
        tensors[f"{norm}.weight"] = (1 + normal(hidden, scale=0.1)).bfloat16()
    tensors[f"{layer}.self_attn.o_proj.weight"] = normal(hidden, hidden, scale=0.1).bfloat16()
    for module, rows, columns, how in [
        ("self_attn.q_proj", hidden, hidden, {}),
        ("self_attn.k_proj", hidden // 2, hidden, {"blocksize": 128}),
        ("self_attn.v_proj", hidden // 2, hidden, {"double": False}),
        ("mlp.gate_proj", intermediate, hidden, {}),
        ("mlp.up_proj", intermediate, hidden, {}),
    ]:
        weight = normal(rows, columns, scale=0.1).bfloat16()
        quantized(tensors, expected, f"{layer}.{module}.weight", weight, **how)
    # Of 272 columns, which are no whole blocks: two matrices in one model.
    weight = normal(hidden, intermediate, scale=0.05).bfloat16()
    quantized(tensors, expected, f"{layer}.mlp.down_proj.weight", weight, kept=False)
    write(folder, tensors, expected)


def nf4_rows(folder):
    config(folder)
    tensors, expected = {}, {}
    quantized(tensors, expected, "bf16.weight", normal(10, 96).bfloat16(), kept=False)
    quantized(tensors, expected, "f16.weight", normal(10, 96).half(), double=False, kept=False)
    quantized(tensors, expected, "f32.weight", normal(7, 33), kept=False)
    quantized(tensors, expected, "stored_bf16.weight", normal(8, 128).bfloat16(), storage=torch.bfloat16)
    write(folder, tensors, expected)


def fp8(folder):
    config(folder)
    tensors, expected = {}, {}

    def add(name, rows, columns, scales, block, scale_name="weight_scale_inv"):
        codes = torch.randint(0, 256, (rows, columns), generator=GENERATOR, dtype=torch.uint8)
        codes.flatten()[: min(256, codes.numel())] = torch.arange(256, dtype=torch.uint8)[: codes.numel()]
        # All codes but those of NaN.
        codes = torch.where((codes & 127) == 127, codes - 1, codes)
        weight = codes.view(torch.float8_e4m3fn)
        tensors[f"{name}.weight"], tensors[f"{name}.{scale_name}"] = weight, scales
        whole = scales.float()
        if block:
            whole = whole.reshape(-1, whole.shape[-1]).repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[:rows, :columns]
        expected[f"{name}.weight"] = golden((weight.float() * whole).bfloat16(), "bf16")

    add("block", 130, 136, torch.rand(2, 2, generator=GENERATOR), (128, 128))
    add("block_bf16", 6, 150, torch.rand(1, 2, generator=GENERATOR).bfloat16(), (128, 128))
    add("scalar", 16, 20, torch.tensor(0.0123), None)
    tensors["scalar.activation_scale"] = torch.tensor(0.5)
    add("row", 9, 30, torch.rand(9, 1, generator=GENERATOR).bfloat16(), (1, 30), "weight_scale")
    tensors["row.input_scale"] = torch.tensor([0.5])
    write(folder, tensors, expected)


def blocks(kind, rows, columns, scale):
    """Random blocks of a type, whose numbers are near `scale`."""
    rng = np.random.default_rng([7, rows, columns, int(kind)])
    size, length = gguf.GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 256, (rows, columns // size, length), dtype=np.uint8)
    # IQ4_XS multiplies by up to 32 more.
    largest = 127 if kind == gguf.GGMLQuantizationType.IQ4_NL else 127 * 16
    d = (rng.uniform(0.5, 2, raw.shape[:2]) * scale / largest * rng.choice([-1, 1], raw.shape[:2])).astype(np.float16)
    raw[:, :, :2] = d.view(np.uint8).reshape(*raw.shape[:2], 2)
    return raw.reshape(rows, -1)


def iq4(path):
    kinds = gguf.GGMLQuantizationType
    writer = gguf.GGUFWriter(path, "llama")
    hidden, intermediate, heads, vocabulary = IQ4.values()
    writer.add_block_count(1)
    writer.add_context_length(256)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(intermediate)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_vocab_size(vocabulary)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_IQ4_NL)
    # A byte-level vocabulary of letters, without merges.
    letters = [chr(code) for code in range(33, 33 + vocabulary - 3)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["<unk>", "<s>", "</s>", *letters])
    writer.add_token_types([2, 3, 3] + [1] * len(letters))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    rng = np.random.default_rng(3)
    writer.add_tensor("token_embd.weight", rng.normal(size=(vocabulary, hidden)).astype(np.float16))
    for norm in ["output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"]:
        writer.add_tensor(f"{norm}.weight", rng.normal(1, 0.1, hidden).astype(np.float32))
    expected = {}
    for name, rows, columns, kind in [
        ("attn_q", hidden, hidden, kinds.IQ4_NL),
        ("attn_k", hidden, hidden, kinds.IQ4_NL),
        ("attn_v", hidden, hidden, kinds.IQ4_NL),
        ("attn_output", hidden, hidden, kinds.IQ4_NL),
        ("ffn_gate", intermediate, hidden, kinds.IQ4_NL),
        ("ffn_up", intermediate, hidden, kinds.IQ4_NL),
        ("ffn_down", hidden, intermediate, kinds.IQ4_XS),
    ]:
        raw = blocks(kind, rows, columns, 0.3)
        writer.add_tensor(f"blk.0.{name}.weight", raw, raw_dtype=kind)
        numbers = torch.from_numpy(np.ascontiguousarray(gguf.quants.dequantize(raw, kind), dtype=np.float32))
        assert numbers.shape == (rows, columns) and bool(torch.isfinite(numbers).all())
        expected[f"blk.0.{name}.weight"] = golden(numbers, "f32")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".json").write_text(json.dumps(expected, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    nf4(out / "nf4")
    nf4_rows(out / "nf4_rows")
    fp8(out / "fp8")
    iq4(out / "iq4.gguf")
    versions = {"torch": torch.__version__, "bitsandbytes": bitsandbytes.__version__, "numpy": np.__version__}
    print(versions, sum(file.stat().st_size for file in out.rglob("*") if file.is_file()), "bytes")


if __name__ == "__main__":
    main()
