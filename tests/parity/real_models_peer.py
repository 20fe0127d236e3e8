"""The peers of real_models.py: a GGUF file in transformers, PEFT and llama.cpp, all in float32."""

import ctypes
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import peft
import torch
import transformers
from families import EPSILON, OBJECTIVE, least_group_confidence
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benches"))
from gguf_to_hf import dequantized  # noqa: E402
from peer_peft import IGNORED, batches, collate  # noqa: E402


@dataclass(frozen=True)
class Step:
    """What an optimizer step reports: both losses, and the gradient's norm before it is clipped."""

    objective_loss: float
    cross_entropy: float
    grad_norm: float


class Vocabulary:
    """The tokens of a GGUF file, as llama.cpp cuts text into them."""

    def __init__(self, file: Path) -> None:
        self.llm = llama_cpp.Llama(str(file), vocab_only=True, verbose=False)
        self.vocab = llama_cpp.llama_model_get_vocab(self.llm.model)
        self.begins = bool(llama_cpp.llama_vocab_get_add_bos(self.vocab))

    def ids(self, text: str, begins: bool = False) -> list[int]:
        """The tokens of a text; of one that `begins`, with BOS in front if the file says so."""
        return self.llm.tokenize(text.encode(), add_bos=begins and self.begins, special=False)

    def piece(self, token: int) -> bytes:
        """What a token is written as; nothing of a control token."""
        buffer = ctypes.create_string_buffer(1024)
        length = llama_cpp.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, False)
        return buffer.raw[:length]

    def row(self, prompt: str, completion: str, most: int) -> dict[str, Any]:
        """A row as Equipoise's format `completion` has it: each part apart, EOS behind, cut at the end."""
        given = self.ids(prompt, begins=True)
        return {"ids": (given + self.ids(completion) + [self.llm.token_eos()])[:most], "given": len(given)}


def dequantized_folder(file: Path, folder: Path) -> Path:
    """A Hugging Face folder of the weights as transformers dequantizes them, in float32."""
    if not (folder / "config.json").exists():
        made = folder.with_name(folder.name + ".new")
        shutil.rmtree(made, ignore_errors=True)
        dequantized(file).save_pretrained(made)
        made.rename(folder)
    return folder


def dequantized_gguf(file: Path, out: Path) -> Path:
    """The same GGUF file with all tensors in float32, so that llama.cpp rounds no activations."""
    if not out.exists():
        reader = gguf.GGUFReader(file)
        made = out.with_name(out.name + ".new")
        writer = gguf.GGUFWriter(made, reader.fields["general.architecture"].contents())
        for field in reader.fields.values():
            if not field.name.startswith("GGUF.") and field.name != "general.architecture":
                sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
                writer.add_key_value(field.name, field.contents(), field.types[0], sub_type)
        for tensor in reader.tensors:
            writer.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype("float32"))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        made.rename(out)
    return out


def adapter_tensors(model: Any) -> dict[str, torch.Tensor]:
    """A and B by the names of PEFT's files."""
    return {name: value.detach() for name, value in peft.get_peft_model_state_dict(model).items()}


def losses(model: Any, rows: list[dict[str, Any]], objective: str) -> tuple[torch.Tensor, float]:
    """The objective's loss of a step, with its gradient, and the plain cross-entropy.

    The softmax is float64: torch's, in float32 over a quarter of a million logits, is off by 3e-5.
    """
    batch = collate(rows, model.config.pad_token_id or 0)
    labels = batch.pop("labels")[:, 1:]
    log_p = model(**batch).logits[:, :-1].double().log_softmax(-1).gather(2, labels.clamp(min=0)[..., None])[..., 0]
    learnt = labels != IGNORED
    cross_entropy = -log_p[learnt].mean()
    if objective == "sft":
        return cross_entropy, cross_entropy.item()
    loss = torch.zeros(())
    for row, mask in zip(log_p, learnt):
        row = row[mask]
        fixed = row.detach()
        weight = 1 - least_group_confidence(fixed, OBJECTIVE["group_size"]) ** OBJECTIVE["gamma"]
        loss = loss + weight * (fixed.exp() * -row).sum() / (len(row) + EPSILON) / len(rows)
    return loss, cross_entropy.item()


def lora_steps(base: Path, start: Path, file: Path, objective: str, rate: float) -> tuple[list[Step], dict[str, Any]]:
    """One AdamW step for each line of `file`, from the adapter in `start`; and the adapter behind the last."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    model.config.use_cache = False
    model = peft.PeftModel.from_pretrained(model, start, is_trainable=True).train()
    written = load_file(start / "adapter_model.safetensors")
    held = adapter_tensors(model)
    if written.keys() != held.keys() or not all(held[name].equal(value) for name, value in written.items()):
        sys.exit(f"{start}: PEFT did not load all of it")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    steps = []
    for rows in batches(file):
        loss, cross_entropy = losses(model, rows, objective)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        steps.append(Step(loss.item(), cross_entropy, norm.item()))
    return steps, adapter_tensors(model)
