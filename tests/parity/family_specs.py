"""The tiny models of `families.py`: one entry a family, with what makes the family itself switched on.

Each entry has the configuration that the model is made from, how `config.json` is rewritten afterwards (many files on the Hub
have the keys of older versions of transformers), the linear layers that the adapter sits on, and what can be switched off to
see that it matters.
"""

import dataclasses
from collections.abc import Callable

from family_configs import (
    granite4_file,
    older,
    older_gemma3,
    older_phi3,
    older_text,
    qwen2_file,
    sparse_gemma3,
)

VOCABULARY = 192
LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FUSED = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
# A vision tower has linear layers of the same names.
IN_DECODER = r".*language_model\..*\.({})".format("|".join(LLAMA))


@dataclasses.dataclass
class Family:
    config_class: str
    config: dict
    model_class: str
    # What to do to the JSON that transformers writes.
    rewrite: Callable[[dict], None] = lambda config: None
    targets: list | str = dataclasses.field(default_factory=lambda: LLAMA)
    # `1 + w` norms, stored around zero.
    zero_centred: bool = False
    # Standard deviation of the embedding's rows and of the head's (where it is not tied).
    embedding: float = 0.25
    head: float = 0.5
    lengths: tuple = (40, 23, 9)
    # A second set of samples that transformers computes with longrope's long factors.
    long_lengths: tuple = ()
    original_length: int = 0
    # Label -> what is done to the configuration (`config:`) or to the loaded model (`model:`).
    switches: dict = dataclasses.field(default_factory=dict)
    sentencepiece: bool = False
    # What is done to the configuration to have what a GGUF file says, where it says less; and what llama.cpp makes of that
    # file, where it is something else again.
    gguf: Callable | None = None
    llama_cpp: Callable | None = None


def base(**more):
    """What all of them share, unless a family says otherwise."""
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": None,
        **more,
    }


def rope(theta, kind="default", **more):
    return {"rope_type": kind, "rope_theta": theta, **more}


def yarn(theta, **more):
    return rope(theta, "yarn", factor=4.0, original_max_position_embeddings=64, **more)


# ---- what is switched off


def set_text(**values):
    """Sets attributes of the decoder's configuration."""

    def change(config):
        for key, value in values.items():
            setattr(config.get_text_config(), key, value)

    return "config", change


def plain_rope(*layer_types):
    """Takes the scaling out of the rotary angles; of some types of layers only, where there are several."""

    def change(config):
        parameters = config.get_text_config().rope_parameters
        for one in [parameters[kind] for kind in layer_types] or [parameters]:
            theta = one["rope_theta"]
            kept = {k: v for k, v in one.items() if k in ("partial_rotary_factor", "llama_4_scaling_beta")}
            kept |= {"original_max_position_embeddings": 16} if "llama_4_scaling_beta" in one else {}
            one.clear()
            one.update(rope(theta), **kept)

    return "config", change


def set_rope(layer_type=None, **values):
    def change(config):
        parameters = config.get_text_config().rope_parameters
        (parameters[layer_type] if layer_type else parameters).update(values)

    return "config", change


def without_modules(*endings):
    """Puts nothing in the place of the modules whose names end so."""

    def change(model):
        from torch import nn

        for name, module in list(model.named_modules()):
            for child in [child for child, _ in module.named_children() if f"{name}.{child}".endswith(endings)]:
                setattr(module, child, nn.Identity())

    return "model", change


def without_biases(model):
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.zero_()


def without_embedding_scale(model):
    model.get_input_embeddings().embed_scale.fill_(1.0)


def heeding_the_window(config):
    """qwen2 as if `use_sliding_window` were not read."""
    config.sliding_window = 8
    config.layer_types = ["full_attention", "sliding_attention"]


def all_layers_rotate(model):
    """smollm3: no layer is without rotary positions."""
    for module in model.modules():
        if hasattr(module, "use_rope"):
            module.use_rope = 1


def exaone_rotates_everywhere(model):
    for module in model.modules():
        if type(module).__name__ == "Exaone4Attention":
            # The window is the mask's business; here it only says whether to rotate.
            module.sliding_window = None


def interleaved_as_halves(model):
    import torch
    import transformers.models.glm4.modeling_glm4 as glm4

    def halves(x):
        a, b = x.chunk(2, dim=-1)
        return torch.cat((-b, a), dim=-1)

    # apply_rotary_pos_emb repeats each angle twice: as pairs of neighbours.
    original = glm4.rotate_half
    glm4.rotate_half = halves
    model.undo = lambda: setattr(glm4, "rotate_half", original)


QK_NORM = without_modules("q_norm", "k_norm")
POST_NORMS = without_modules("post_attention_layernorm", "post_feedforward_layernorm")
EMBEDDING_SCALE = ("model", without_embedding_scale)


# ---- the families

GEMMA = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
LONGROPE = {
    "short_factor": [1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 1.8, 2.0, 2.2],
    "long_factor": [1.0, 1.2, 1.6, 2.0, 2.6, 3.1, 3.4, 3.7, 4.0],
}
PHI3 = {"hidden_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1, **GEMMA}

GEMMA3_SWITCHES = {
    "window": set_text(sliding_window=512),
    "linear factor": plain_rope("full_attention"),
    "two thetas": set_rope("sliding_attention", rope_theta=1e6),
    "embedding scale": EMBEDDING_SCALE,
}

FAMILIES = {
    "qwen2": Family(
        "Qwen2Config",
        base(rope_parameters=rope(1e6), max_window_layers=1, tie_word_embeddings=False),
        "Qwen2ForCausalLM",
        rewrite=qwen2_file,
        switches={"biases": ("model", without_biases), "not heeding the window": ("config", heeding_the_window)},
    ),
    "qwen3": Family(
        "Qwen3Config",
        base(head_dim=16, rope_parameters=rope(1e6), tie_word_embeddings=True),
        "Qwen3ForCausalLM",
        switches={"qk-norm": QK_NORM},
    ),
    "mistral_window": Family(
        "MistralConfig",
        base(sliding_window=8, rope_parameters=rope(1e4), rms_norm_eps=1e-5, **GEMMA),
        "MistralForCausalLM",
        rewrite=older,
        switches={"window": set_text(sliding_window=None)},
        sentencepiece=True,
        gguf=set_text(sliding_window=None)[1],
    ),
    "nemo": Family(
        "MistralConfig",
        base(head_dim=16, sliding_window=None, rope_parameters=rope(1e6), rms_norm_eps=1e-5),
        "MistralForCausalLM",
    ),
    "gemma2": Family(
        "Gemma2Config",
        base(
            num_hidden_layers=4, head_dim=16, sliding_window=8, query_pre_attn_scalar=24, attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0, rope_parameters=rope(1e4), **GEMMA,
        ),
        "Gemma2ForCausalLM",
        zero_centred=True,
        switches={
            "window": set_text(sliding_window=512),
            "attention softcap": set_text(attn_logit_softcapping=None),
            "final softcap": set_text(final_logit_softcapping=None),
            "query_pre_attn_scalar": set_text(query_pre_attn_scalar=16),
            "gelu tanh": set_text(hidden_activation="silu"),
            "embedding scale": EMBEDDING_SCALE,
            "post norms": POST_NORMS,
        },
        sentencepiece=True,
        # The attention's scale is not in the file: head_dim^-½ is taken.
        gguf=set_text(query_pre_attn_scalar=16)[1],
    ),
    "gemma3_text": Family(
        "Gemma3TextConfig",
        base(
            num_hidden_layers=7, intermediate_size=32, head_dim=8, sliding_window=8, query_pre_attn_scalar=8,
            rope_parameters={"full_attention": rope(1e6, "linear", factor=8.0), "sliding_attention": rope(1e4)}, **GEMMA,
        ),
        "Gemma3ForCausalLM",
        rewrite=older_gemma3,
        zero_centred=True,
        switches={**GEMMA3_SWITCHES, "qk-norm": QK_NORM},
        sentencepiece=True,
    ),
    "smollm3": Family(
        "SmolLM3Config",
        base(num_hidden_layers=4, rope_parameters=rope(5e4), tie_word_embeddings=True),
        "SmolLM3ForCausalLM",
        rewrite=older,
        switches={"layers without positions": ("model", all_layers_rotate)},
    ),
    "granite": Family(
        "GraniteConfig",
        base(
            rope_parameters=rope(1e4), embedding_multiplier=6.0, attention_multiplier=0.2, residual_multiplier=0.5,
            logits_scaling=1.5, tie_word_embeddings=True,
        ),
        "GraniteForCausalLM",
        switches={
            "embedding_multiplier": set_text(embedding_multiplier=1.0),
            "attention_multiplier": set_text(attention_multiplier=8**-0.5),
            "residual_multiplier": set_text(residual_multiplier=1.0),
            "logits_scaling": set_text(logits_scaling=1.0),
        },
    ),
    "phi3": Family(
        "Phi3Config",
        base(**PHI3, rope_parameters=rope(1e4, partial_rotary_factor=0.75), original_max_position_embeddings=256),
        "Phi3ForCausalLM",
        targets=FUSED,
        switches={"partial rotation": set_rope(partial_rotary_factor=1.0)},
        sentencepiece=True,
    ),
    "olmo2": Family(
        "Olmo2Config",
        base(rope_parameters=rope(5e5), rms_norm_eps=1e-6, tie_word_embeddings=False),
        "Olmo2ForCausalLM",
        switches={"qk-norm": QK_NORM, "post norms": POST_NORMS},
    ),
    "qwen3_yarn": Family(
        "Qwen3Config",
        base(head_dim=16, rope_parameters=yarn(1e4), tie_word_embeddings=True),
        "Qwen3ForCausalLM",
        rewrite=older,
        switches={"yarn": plain_rope(), "attention factor": set_rope(attention_factor=1.0), "qk-norm": QK_NORM},
    ),
    "seed_oss": Family(
        "SeedOssConfig",
        base(head_dim=16, rope_parameters=rope(1e7), attention_bias=True, attention_out_bias=False),
        "SeedOssForCausalLM",
        switches={"biases": ("model", without_biases)},
    ),
    "qwen3_vl": Family(
        "Qwen3VLConfig",
        {
            "text_config": {
                k: v for k, v in base(
                    head_dim=16,
                    rope_parameters=rope(5e6, mrope_section=[4, 2, 2], mrope_interleaved=True),
                ).items() if k not in ("bos_token_id", "eos_token_id", "pad_token_id")
            },
            "vision_config": {
                "depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 1, "patch_size": 2,
                "spatial_merge_size": 1, "temporal_patch_size": 1, "out_hidden_size": 32, "num_position_embeddings": 4,
                "deepstack_visual_indexes": [0],
            },
            "image_token_id": 185, "video_token_id": 186, "vision_start_token_id": 187, "vision_end_token_id": 188,
            "tie_word_embeddings": True,
        },
        "Qwen3VLForConditionalGeneration",
        rewrite=older_text,
        targets=IN_DECODER,
        switches={"qk-norm": QK_NORM},
    ),
    "ministral3": Family(
        "Mistral3Config",
        {
            "text_config": {
                "model_type": "ministral3",
                **base(
                    head_dim=16,
                    rope_parameters=rope(
                        1e4, "yarn", factor=16.0, original_max_position_embeddings=16, max_position_embeddings=256,
                        beta_fast=32.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.5,
                    ),
                ),
            },
            "vision_config": {
                "model_type": "pixtral", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
                "num_attention_heads": 1, "head_dim": 8, "image_size": 4, "patch_size": 2,
            },
            "tie_word_embeddings": False,
        },
        "Mistral3ForConditionalGeneration",
        targets=IN_DECODER,
        switches={"yarn": plain_rope(), "query temperature": set_rope(llama_4_scaling_beta=0.0)},
    ),
    "gemma3": Family(
        "Gemma3Config",
        {
            "text_config": {
                "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 6, "head_dim": 8,
                "sliding_window": 8,
                "rope_parameters": {
                    "full_attention": rope(1e6, "linear", factor=8.0), "sliding_attention": rope(1e4)
                },
            },
            "vision_config": {
                "model_type": "siglip_vision_model", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
                "num_attention_heads": 1, "image_size": 4, "patch_size": 2, "vision_use_head": False,
            },
            "mm_tokens_per_image": 4, **GEMMA,
        },
        "Gemma3ForConditionalGeneration",
        rewrite=sparse_gemma3,
        targets=IN_DECODER,
        zero_centred=True,
        switches={
            **GEMMA3_SWITCHES,
            "query_pre_attn_scalar": set_text(query_pre_attn_scalar=8),
            "qk-norm": QK_NORM,
        },
        sentencepiece=True,
        gguf=set_text(query_pre_attn_scalar=8)[1],
    ),
    "olmo3": Family(
        "Olmo3Config",
        base(
            num_hidden_layers=4, sliding_window=8, rms_norm_eps=1e-6, tie_word_embeddings=False, intermediate_size=40,
            rope_parameters={
                "full_attention": rope(5e5, "yarn", factor=8.0, original_max_position_embeddings=32),
                "sliding_attention": rope(5e5),
            },
        ),
        "Olmo3ForCausalLM",
        switches={
            "window": set_text(sliding_window=512),
            "yarn": plain_rope("full_attention"),
            "qk-norm": QK_NORM,
        },
    ),
    "exaone4": Family(
        "Exaone4Config",
        base(
            num_hidden_layers=4, sliding_window=8, sliding_window_pattern=4, rope_parameters=rope(1e4),
            tie_word_embeddings=True,
        ),
        "Exaone4ForCausalLM",
        # The file has the window, but llama.cpp heeds it in a model of 64 layers only.
        llama_cpp=set_text(sliding_window=None, layer_types=["full_attention"] * 4)[1],
        switches={
            "window": set_text(sliding_window=512),
            "layers without positions": ("model", exaone_rotates_everywhere),
            "qk-norm": QK_NORM,
        },
    ),
    "phi3_longrope": Family(
        "Phi3Config",
        base(
            **PHI3, original_max_position_embeddings=64,
            rope_parameters=rope(1e4, "longrope", partial_rotary_factor=0.75, **LONGROPE),
        ),
        "Phi3ForCausalLM",
        rewrite=older_phi3,
        targets=FUSED,
        long_lengths=(80, 70, 20),
        original_length=64,
        switches={
            "longrope": plain_rope(),
            "partial rotation": set_rope(partial_rotary_factor=1.0, short_factor=[1.0] * 12, long_factor=[1.0] * 12),
        },
        sentencepiece=True,
    ),
    "glm4": Family(
        "Glm4Config",
        base(
            head_dim=16, attention_bias=True, rope_parameters=rope(1e4, partial_rotary_factor=0.5), rms_norm_eps=1e-5,
            tie_word_embeddings=False,
        ),
        "Glm4ForCausalLM",
        targets=["q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"],
        switches={
            "partial rotation": set_rope(partial_rotary_factor=1.0),
            "interleaved pairs": ("model", interleaved_as_halves),
            "biases": ("model", without_biases),
            "post norms": without_modules("post_self_attn_layernorm", "post_mlp_layernorm"),
        },
    ),
    "granitemoehybrid": Family(
        "GraniteMoeHybridConfig",
        base(
            rope_parameters=rope(1e4), embedding_multiplier=6.0, attention_multiplier=0.2, residual_multiplier=0.5,
            logits_scaling=1.5, tie_word_embeddings=True, num_local_experts=0, num_experts_per_tok=0,
            shared_intermediate_size=48, position_embedding_type="rope", layer_types=["attention"] * 2, mamba_n_heads=8,
            mamba_d_state=8, mamba_d_head=8,
        ),
        "GraniteMoeHybridForCausalLM",
        rewrite=granite4_file,
        targets=["q_proj", "k_proj", "v_proj", "o_proj", "input_linear", "output_linear"],
        switches={
            "embedding_multiplier": set_text(embedding_multiplier=1.0),
            "attention_multiplier": set_text(attention_multiplier=8**-0.5),
            "residual_multiplier": set_text(residual_multiplier=1.0),
            "logits_scaling": set_text(logits_scaling=1.0),
            "positions": set_text(position_embedding_type=None),
        },
    ),
}
