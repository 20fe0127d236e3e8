"""`config.json` of the tiny models as older versions of transformers, or the files on the Hub, have it."""


def older(config):
    """Top-level `rope_theta` and `rope_scaling`, `torch_dtype`, no `layer_types`."""
    parameters = config.pop("rope_parameters")
    config["rope_theta"] = parameters.pop("rope_theta")
    if "partial_rotary_factor" in parameters:
        config["partial_rotary_factor"] = parameters.pop("partial_rotary_factor")
    config["rope_scaling"] = parameters if parameters["rope_type"] != "default" else None
    config.pop("layer_types", None)
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.51.0"


def older_gemma3(config):
    parameters = config.pop("rope_parameters")
    full, sliding = parameters["full_attention"], parameters["sliding_attention"]
    config["rope_theta"], config["rope_local_base_freq"] = full.pop("rope_theta"), sliding["rope_theta"]
    config["rope_scaling"] = full if full["rope_type"] != "default" else None
    config.pop("layer_types")
    config["sliding_window_pattern"] = config.pop("_sliding_window_pattern", 6)
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.52.0"


def older_phi3(config):
    older(config)
    # The oldest name of the key; the original length stays at the top, as in the files of Phi.
    scaling = config["rope_scaling"]
    config["rope_scaling"] = {
        "long_factor": scaling["long_factor"],
        "short_factor": scaling["short_factor"],
        "type": "longrope",
    }


def sparse_gemma3(config):
    """As google/gemma-3-4b-it: the text's keys that equal the class's defaults are left out."""
    kept = ("hidden_size", "intermediate_size", "model_type", "num_hidden_layers", "sliding_window", "head_dim", "vocab_size")
    text = {key: config["text_config"][key] for key in kept}
    text["rope_scaling"] = {"factor": 8.0, "rope_type": "linear"}
    config["text_config"] = text
    config["torch_dtype"] = config.pop("dtype")
    config.pop("tie_word_embeddings", None)
    config["transformers_version"] = "4.50.0.dev0"


def older_text(config):
    """As the files of Qwen3-VL: the older keys inside `text_config`."""
    text = config["text_config"]
    text["dtype"] = config.pop("dtype")
    older(text)
    text["dtype"] = text.pop("torch_dtype")
    text["rope_scaling"] = {"mrope_interleaved": True, "mrope_section": [4, 2, 2], "rope_type": "default"}
    config["transformers_version"] = text.pop("transformers_version")


def granite4_file(config):
    """The files of Granite 4 say `attention` where transformers 5 writes `full_attention`."""
    config["layer_types"] = ["attention"] * config["num_hidden_layers"]
    config.pop("time_step_limit")  # transformers writes its infinity as an object


def qwen2_file(config):
    """The files of Qwen2.5 have a window that `use_sliding_window` switches off; transformers writes null instead."""
    config["sliding_window"] = 8
    config["use_sliding_window"] = False
