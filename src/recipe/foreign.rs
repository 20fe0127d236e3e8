//! The keys of other trainers (Axolotl, LLaMA-Factory, TRL, Hugging Face's Trainer, PEFT, torchtune, Unsloth), answered
//! with ours. It owns the table and the conversion of values; how an answer is worded is `unknown.rs`'s.

use super::keys::{Kind, kind_at};
use serde_yaml::Value;

/// What we say to someone else's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// Our key of the same meaning.
    Ours(&'static str),
    /// If their value is `true`: our key with this value.
    IfTrue(&'static str, &'static str),
    /// We have no such key, for this reason.
    None(&'static str),
}

use Answer::{IfTrue, None as No, Ours};

/// Keys that are answered alike stand in one row, parted by spaces.
const TABLE: &[(&str, Answer)] = &[
    // The base model.
    (
        "base_model model_name_or_path base_model_name_or_path model_name model_id pretrained_model_name_or_path model_path \
         base_model_id model hf_model_repo_id",
        Ours("base.model"),
    ),
    ("gguf_file checkpoint_files model_file", Ours("base.file")),
    (
        "model_revision revision revision_of_model",
        No("write the revision behind the id: `base.model: org/name@revision`; of an upload it is `hub.revision`"),
    ),
    (
        "tokenizer tokenizer_name tokenizer_name_or_path tokenizer_type tokenizer_config resize_vocab special_tokens",
        No("the tokenizer is the base model's own"),
    ),
    ("model_type architectures tokenizer_use_fast", No("the architecture is read from the base model's own files")),
    (
        "trust_remote_code trust_remote_code_model",
        No("no code of a model repository is ever run; the architectures are built in"),
    ),
    ("token hf_token hub_token use_auth_token hf_hub_token", No("set the environment variable HF_TOKEN instead")),
    ("cache_dir model_cache_dir download_dir", No("set the environment variable HF_HOME instead")),
    // Quantization.
    ("load_in_4bit use_4bit bnb_4bit", IfTrue("quantization.type", "q4_k")),
    ("load_in_8bit use_8bit", IfTrue("quantization.type", "q8_0")),
    ("quantization_bit bits quant_type bnb_4bit_quant_type quantization_method", Ours("quantization.type")),
    (
        "bnb_4bit_compute_dtype bnb_4bit_use_double_quant bnb_config bnb_config_kwargs quantization_config double_quantization \
         gptq llm_int8_threshold quantizer",
        No("the frozen weights are held in a GGML type: `quantization.type`, for instance `q8_0` or `q4_k`"),
    ),
    ("dtype torch_dtype precision mixed_precision compute_dtype", Ours("compute")),
    ("bf16 bfloat16 pure_bf16 bf16_full_eval", IfTrue("compute", "bf16")),
    (
        "fp16 tf32 float16 fp16_full_eval upcast_layernorm",
        No("`compute` takes `auto`, `f32` or `bf16`; `quantization.type` says how the frozen weights are held"),
    ),
    // LoRA.
    ("lora_r lora_rank rank lora_dim r_lora lora_attn_rank", Ours("lora.r")),
    ("alpha lora_scale lora_attn_alpha", Ours("lora.lora_alpha")),
    ("dropout lora_drop", Ours("lora.lora_dropout")),
    (
        "lora_target lora_target_modules target_modules_lora lora_attn_modules lora_modules lora_layers lora_target_linear \
         modules",
        Ours("lora.target_modules"),
    ),
    ("rslora lora_use_rslora use_rs_lora peft_use_rslora", Ours("lora.use_rslora")),
    ("peft peft_config lora_config lora_parameters lora_args", Ours("lora")),
    (
        "adapter finetuning_type fine_tune_type peft_type tuner_type train_type use_peft use_lora",
        No("LoRA is what is trained, always"),
    ),
    (
        "use_dora peft_use_dora lora_dora",
        No("DoRA is not built; plain LoRA and rank-stabilised LoRA (`lora.use_rslora`) are"),
    ),
    (
        "modules_to_save lora_modules_to_save additional_target bias lora_bias freeze_trainable_layers apply_lora_to_output \
         lora_on_cpu layers_to_transform layers_pattern rank_pattern alpha_pattern lora_fan_in_fan_out fan_in_fan_out \
         init_lora_weights loftq_config create_new_adapter num_layers unfrozen_parameters",
        No("only LoRA's A and B of `lora.target_modules` are trained, with PEFT's own initialisation"),
    ),
    ("task_type stage rl", No("causal language modelling is what is trained; the loss is `objective.type`")),
    // Data.
    (
        "dataset datasets train_file dataset_path data_path dataset_name train_path train_data training_data data_files",
        Ours("data.train"),
    ),
    (
        "eval_file validation_file eval_dataset test_datasets eval_data eval_path validation_data valid_file dataset_valid \
         valid_data eval_datasets val_file",
        Ours("data.validation"),
    ),
    (
        "val_set_size val_size eval_split validation_split_percentage split_ratio test_size valid_split",
        Ours("data.validation_split"),
    ),
    (
        "cutoff_len max_seq_length sequence_len max_length model_max_length block_size seq_length max_sequence_length \
         sequence_length context_length tokenizer_max_length",
        Ours("data.max_seq_len"),
    ),
    ("dataset_format data_format prompt_style dataset_type formatting", Ours("data.format")),
    ("excess_length_strategy truncation truncate truncation_mode", Ours("data.overlong")),
    (
        "chat_template jinja_template conversation_template chat_template_jinja chat_template_path",
        Ours("data.chat_template"),
    ),
    (
        "prompt_template default_system_message default_system",
        No("write `data.template`, whose `system`, `user` and `assistant` are Jinja over the row's fields"),
    ),
    (
        "train_on_inputs train_on_input train_on_prompt mask_prompt completion_only_loss assistant_only_loss \
         response_template roles_to_train train_on_responses_only",
        No("only what the model shall write is learnt: completions, outputs, and the assistant's messages"),
    ),
    ("mask_history", No("write `data.train_on_turns: last`")),
    (
        "dataset_text_field field field_instruction field_output field_input columns",
        No("write `data.fields`: the format's name, then the row's"),
    ),
    (
        "message_property_mappings message_field_role message_field_content field_messages tags role_tag content_tag user_tag \
         assistant_tag system_tag observation_tag function_tag field_system field_tools",
        No("write `data.fields: {messages: dialog, role: speaker, content: text}`; names of roles are \
             `data.roles: {assistant: [bot]}`"),
    ),
    (
        "message_field_training message_field_training_detail",
        No("a turn's `train`, `weight` or `loss` is read; under another name write `data.fields: {train: NAME}`"),
    ),
    ("delimiter sep separator delim csv_delimiter", No("write the source as `{path: rows.csv, delimiter: \";\"}`")),
    ("sample_packing packed neat_packing", Ours("data.packing")),
    ("length_column_name train_sampling_strategy", No("write `data.group_by_length: true`")),
    (
        "eval_packing eval_sample_packing pad_to_sequence_len pad_to_multiple_of packing_strategy",
        No("`data.packing` packs by best fit; padding is never computed"),
    ),
    ("dataset_prepared_path tokenized_path", Ours("data.cache")),
    (
        "overwrite_cache preprocessing_num_workers dataset_num_proc dataloader_num_workers streaming \
         dataset_processes dataloader_pin_memory dataset_kwargs buffer_size remove_unused_columns",
        No(
            "rows are tokenized on all cores, and kept by what they were made of (`data.cache`); there is nothing to set",
        ),
    ),
    ("shuffle shuffle_merged_datasets", No("rows are shuffled each epoch, by `training.seed`")),
    ("max_samples max_train_samples num_samples", No("write the source as `{path: …, limit: 1000}`")),
    // Training.
    ("num_train_epochs num_epochs n_epochs total_epochs epoch max_epochs", Ours("training.epochs")),
    (
        "max_train_steps max_steps_per_epoch train_steps iters total_steps num_steps num_training_steps",
        Ours("training.max_steps"),
    ),
    (
        "per_device_train_batch_size train_batch_size batch_size per_gpu_train_batch_size train_micro_batch_size_per_gpu \
         micro_batch mini_batch_size",
        Ours("training.micro_batch_size"),
    ),
    ("per_device_eval_batch_size eval_batch_size val_batch_size", No("validation uses `training.micro_batch_size`")),
    (
        "gradient_accumulation grad_accumulation_steps accumulate_grad_batches accumulation_steps grad_accum_steps",
        Ours("training.gradient_accumulation_steps"),
    ),
    ("lr max_lr peak_lr learning_rate_max", Ours("training.learning_rate")),
    ("lr_scheduler_type scheduler lr_schedule scheduler_type", Ours("training.lr_scheduler")),
    ("warmup num_warmup_steps lr_warmup_steps warmup_iters", Ours("training.warmup_steps")),
    ("warmup_fraction warmup_proportion", Ours("training.warmup_ratio")),
    (
        "lr_scheduler_kwargs cosine_min_lr_ratio min_lr cosine_constant_lr_ratio lr_groups",
        No("schedules end at 0, or stay constant"),
    ),
    (
        "optimizer optim optimizer_name optimizer_type optim_args optimizer_config",
        No(
            "AdamW it is; its keys are `learning_rate`, `weight_decay`, `adam_beta1`, `adam_beta2`, `adam_epsilon` in `training`",
        ),
    ),
    ("wd", Ours("training.weight_decay")),
    ("beta1 adam_beta_1", Ours("training.adam_beta1")),
    ("beta2 adam_beta_2", Ours("training.adam_beta2")),
    ("eps adam_eps epsilon", Ours("training.adam_epsilon")),
    (
        "gradient_clipping clip_grad_norm max_gradient_norm grad_clip gradient_clip_val max_norm",
        Ours("training.max_grad_norm"),
    ),
    (
        "enable_activation_checkpointing use_gradient_checkpointing activation_checkpointing grad_checkpoint gradient_checkpoint",
        Ours("training.gradient_checkpointing"),
    ),
    (
        "gradient_checkpointing_kwargs enable_activation_offloading activation_offloading",
        No("there is `training.gradient_checkpointing`: `layer`, and `offload` for a GPU"),
    ),
    ("eval_every steps_per_eval val_check_interval eval_interval run_val_every_n_steps", Ours("training.eval_steps")),
    (
        "save_every steps_per_save save_interval checkpoint_every save_freq save_every_n_steps",
        Ours("training.save_steps"),
    ),
    ("save_limit keep_checkpoints", Ours("training.save_total_limit")),
    ("early_stopping_rounds patience early_stopping", Ours("training.early_stopping_patience")),
    ("random_seed data_seed random_state manual_seed", Ours("training.seed")),
    (
        "eval_strategy evaluation_strategy do_eval evals_per_epoch",
        No("validation runs every `training.eval_steps` steps, and at the end"),
    ),
    (
        "save_strategy saves_per_epoch save_only_model save_safetensors",
        No("checkpoints are saved every `training.save_steps` steps, and at the end"),
    ),
    ("overwrite_output_dir overwrite", No("say `equipoise train RECIPE --overwrite`")),
    ("greater_is_better", No("it follows from `training.metric_for_best_model`")),
    (
        "lora_model_dir adapter_name_or_path resume_adapter_path init_adapter adapter_dir peft_model_path",
        Ours("lora.init_from"),
    ),
    (
        "resume_from_checkpoint auto_resume_from_checkpoints resume resume_adapter_file",
        No("say `equipoise train RECIPE --resume`"),
    ),
    ("neftune_noise_alpha neftune_alpha noisy_embedding_alpha", No("NEFTune is not built")),
    (
        "loraplus_lr_ratio loraplus_lr_embedding use_galore use_badam galore_target_modules",
        No("this is not built; A and B share `training.learning_rate`"),
    ),
    // The objective.
    ("loss loss_type loss_fn objective_type", Ours("objective.type")),
    ("use_dft_loss enable_dft_loss use_dft", IfTrue("objective.type", "dft")),
    ("use_bft use_bft_loss enable_bft enable_bft_loss", IfTrue("objective.type", "bft")),
    ("use_eaft_loss use_eaft enable_eaft enable_eaft_loss", IfTrue("objective.type", "eaft")),
    ("use_asft_loss use_asft enable_asft enable_asft_loss", IfTrue("objective.type", "asft")),
    ("bft_group_size group_window window_size", Ours("objective.group_size")),
    ("bft_conf_gamma bft_gamma", Ours("objective.gamma")),
    ("eaft_alpha asft_alpha", Ours("objective.alpha")),
    ("eaft_k", Ours("objective.k")),
    ("prob_threshold", Ours("objective.threshold")),
    ("threshold_direction", No("`objective.type: profit` learns from tokens at or above `objective.threshold`")),
    ("objective_trans", No("write `objective: {type: prob, q: 0.5}`; with `q: 1` it is `1 - p`")),
    (
        "bft_weight_floor bft_weight_ceiling bft_normalize_sample_weight bft_warmup_steps bft_min_valid_tokens_in_window",
        No("sample weights are as in the paper; `objective.token_weight_floor` bounds token weights, and \
            `objective.normalize_weights: true` makes the mean weight of a step 1"),
    ),
    (
        "kl_weight kl_coef",
        No("the weight of the divergence from the base is `objective.alpha`, under `objective.type: asft`"),
    ),
    ("dft_chunk_size eaft_chunk_size", No("the head always works on chunks of tokens; there is nothing to set")),
    ("label_smoothing label_smoothing_factor", No("label smoothing is not built; see `objective.type`")),
    ("dpo pref_beta beta kto ref_model reward_model", No("preference training is not built; see `objective.type`")),
    // Running.
    ("device_map accelerator use_cpu no_cuda", No("`device` takes `auto`, `cpu`, `cuda` or `cuda:N`")),
    (
        "deepspeed fsdp fsdp_config ddp_timeout ddp_find_unused_parameters local_rank world_size tensor_parallel_size \
         num_gpus num_processes ddp fsdp_version accelerator_config",
        No("one device trains; there is nothing to distribute"),
    ),
    (
        "flash_attention flash_attn attn_implementation xformers_attention sdp_attention use_flash_attention_2 \
         use_flash_attn torch_compile compile use_cache use_unsloth use_liger_kernel enable_liger_kernel \
         liger_fused_linear_cross_entropy unsloth_lora_mlp low_cpu_mem_usage eager_attention shift_attn rope_scaling \
         max_memory",
        No(
            "speed and memory need no switches here, but `training.gradient_checkpointing` and `training.micro_batch_size`",
        ),
    ),
    (
        "wandb_project wandb_entity wandb_run_id wandb_watch wandb_name wandb wandb_log_model report_to mlflow_experiment_name \
         mlflow_tracking_uri comet_project_name use_tensorboard swanlab_project metric_logger logging_dir log_dir \
         tensorboard",
        No("each run writes metrics.jsonl into its output folder; nothing is sent anywhere"),
    ),
    (
        "logging_steps log_every_n_steps log_interval logging_first_step logging_strategy steps_per_report plot_loss \
         log_peak_memory_stats disable_tqdm log_level verbose debug include_num_input_tokens_seen",
        No("every step is logged, to metrics.jsonl and to the screen"),
    ),
    ("run_name project_name experiment_name", Ours("name")),
    ("output output_folder save_path adapter_path out_dir save_dir output_path", Ours("output_dir")),
    ("hub_model_id hub_repo_id push_to_hub_model_id hub_repo repo_id hf_hub_model_id", Ours("hub.repo")),
    ("hub_private_repo hub_private private_repo", Ours("hub.private")),
    ("hub_revision", Ours("hub.revision")),
    ("hub_license", Ours("hub.license")),
    (
        "push_to_hub push_to_hub_organization push_adapter_to_hub",
        No("name the repository: `hub.repo`, `user/name`; then it is uploaded after training"),
    ),
    (
        "hub_strategy hub_always_push hub_commit_message push_to_hub_token",
        No(
            "the adapter is uploaded once, after training; the section `hub` says where to, and HF_TOKEN holds the token",
        ),
    ),
    ("do_train do_predict strict plugins", No("there is nothing to switch here; delete the line")),
    ("<<", No("YAML's merge keys are not read; write the keys out")),
];

/// What we say to `key`, if it is a known key of another trainer. Case and hyphens do not matter.
pub(super) fn answer(key: &str) -> Option<Answer> {
    let key = key.trim_start_matches("--").replace('-', "_").to_lowercase();
    TABLE.iter().find(|(keys, _)| keys.split_whitespace().any(|known| known == key)).map(|(_, answer)| *answer)
}

/// Words for a value that others use, and ours: (our key, theirs, ours).
const VALUES: &[(&str, &str, &str)] = &[
    ("quantization.type", "4 4bit 4-bit int4 nf4 fp4 q4 q4_k_m q4_k_s qlora q4_k_xl", "q4_k"),
    ("quantization.type", "8 8bit 8-bit int8 q8 q8_k", "q8_0"),
    ("quantization.type", "5 q5 q5_k_m q5_k_s", "q5_k"),
    ("quantization.type", "6 q6", "q6_k"),
    ("quantization.type", "3 q3 q3_k_m q3_k_s q3_k_l", "q3_k"),
    ("quantization.type", "2 q2 q2_k_s", "q2_k"),
    ("quantization.type", "16 32 f16 f32 bf16 fp16 fp32 float16 float32 bfloat16 no off false null", "none"),
    ("lora.target_modules", "all all_linear all-linear-layers linear true", "all-linear"),
    ("data.format", "instruction", "alpaca"),
    ("data.format", "chatml chat_template messages conversation conversational chatml.intel", "chat"),
    ("data.format", "conversations", "sharegpt"),
    ("data.format", "prompt_completion prompt-completion input_output", "completion"),
    ("data.format", "qa question-answer", "question_answer"),
    ("data.format", "mcq multiple-choice", "multiple_choice"),
    ("data.overlong", "skip discard filter remove", "drop"),
    ("data.overlong", "cut trim right keep_start true", "truncate"),
    ("data.overlong", "raise fail", "error"),
    (
        "training.lr_scheduler",
        "cosine_with_min_lr cosine_with_restarts cosine_annealing get_cosine_schedule_with_warmup",
        "cosine",
    ),
    ("training.lr_scheduler", "constant_with_warmup none", "constant"),
    ("training.lr_scheduler", "linear_with_warmup polynomial", "linear"),
    ("training.gradient_checkpointing", "true yes on unsloth full selective", "layer"),
    ("training.gradient_checkpointing", "false no off", "none"),
    ("objective.type", "ce cross_entropy cross-entropy nll supervised default", "sft"),
    ("objective.type", "dynamic dynamic_fine_tuning", "dft"),
    ("objective.type", "balanced balanced_fine_tuning", "bft"),
    ("objective.type", "entropy_adaptive entropy_adaptive_fine_tuning", "eaft"),
    ("objective.type", "anchored anchored_sft sft+kl", "asft"),
    ("objective.type", "prob_threshold", "profit"),
    ("objective.type", "p generalfamily general_family", "prob"),
    ("objective.token_weighting", "p prob probabilities confidence", "probability"),
    ("objective.token_weighting", "group group_normalised grouped relative", "group_normalized"),
    ("objective.sample_weighting", "mgc min_confidence group_confidence confidence", "min_group_confidence"),
    ("objective.token_weighting", "no off false null", "none"),
    ("objective.sample_weighting", "no off false null", "none"),
    ("device", "gpu cuda0 gpu0", "cuda"),
    ("device", "mps metal rocm hip xpu npu tpu vulkan mlx", "cpu"),
    ("training.metric_for_best_model", "loss eval_loss ce perplexity validation_loss", "cross_entropy"),
    (
        "training.metric_for_best_model",
        "accuracy eval_accuracy eval_mean_token_accuracy mean_token_accuracy",
        "token_accuracy",
    ),
    ("training.metric_for_best_model", "probability p", "token_probability"),
    ("compute", "bfloat16 torch.bfloat16 fp16 float16 16 bf16-mixed mixed", "bf16"),
    ("compute", "float32 torch.float32 fp32 float 32 no full", "f32"),
    ("training.gradient_checkpointing", "budget memory", "auto"),
];

/// Our word for someone else's `word`, where there is one.
pub(super) fn our_word(path: &str, word: &str) -> Option<&'static str> {
    let word = word.to_lowercase();
    let known = |words: &str| words.split_whitespace().any(|known| known == word);
    VALUES.iter().find(|(key, words, _)| *key == path && known(words)).map(|(_, _, ours)| *ours)
}

/// `value` as our key at `path` takes it; `None` where it cannot be carried over.
pub(super) fn convert(path: &str, value: &Value) -> Option<Value> {
    let text = super::diagnose::plain(value);
    if let Some(ours) = text.as_deref().and_then(|text| our_word(path, text)) {
        return Some(Value::String(ours.into()));
    }
    match kind_at(path)? {
        Kind::Number => value.is_number().then(|| value.clone()),
        Kind::Count => value.as_u64().map(|_| value.clone()),
        Kind::Flag => value.is_bool().then(|| value.clone()),
        Kind::OneOf(words) => text.filter(|text| words.contains(&text.as_str())).map(Value::String),
        Kind::Text => value.as_str().map(Value::from),
        Kind::Other if matches!(path, "data.train" | "data.validation") => sources(value),
        Kind::Other if path == "data.cache" => value.as_str().map(Value::from),
        Kind::Other => module_names(value),
        Kind::Section(_) => None,
    }
}

/// Axolotl's `datasets: [{path: x, type: y}]`, or a list of paths: one source where it is one, else a list.
fn sources(value: &Value) -> Option<Value> {
    let source = |one: &Value| match one {
        Value::String(_) => Some(one.clone()),
        Value::Mapping(one) => {
            let path = one
                .get("path")
                .filter(|path| is_file(path))
                .or_else(|| one.get("data_files"))
                .or_else(|| one.get("path"))?;
            let path = path.as_str()?;
            // A name with an owner and without an ending is a dataset on the Hub.
            let hub = path.split('/').count() == 2
                && !path.starts_with('.')
                && !path.ends_with('/')
                && !path.contains('*')
                && std::path::Path::new(path).extension().is_none()
                && !std::path::Path::new(path).exists();
            let key = if hub { "hub" } else { "path" };
            let format = one.get("type").and_then(Value::as_str).and_then(|theirs| {
                convert("data.format", &theirs.into())
                    .or_else(|| convert("data.format", &theirs.split('.').next()?.into()))
            });
            let format = format.map(|format| ("format".into(), format));
            match format {
                None if !hub => Some(path.into()),
                format => Some(Value::Mapping([(key.into(), path.into())].into_iter().chain(format).collect())),
            }
        }
        _ => None,
    };
    match value {
        Value::Sequence(all) if all.len() == 1 => source(&all[0]),
        Value::Sequence(all) if !all.is_empty() => {
            all.iter().map(source).collect::<Option<Vec<_>>>().map(Value::Sequence)
        }
        one => source(one),
    }
}

/// Whether a path is that of a file, as `path: json` with `data_files` is not.
fn is_file(path: &Value) -> bool {
    path.as_str().is_some_and(|path| !matches!(path, "json" | "csv" | "parquet" | "text"))
}

/// A list of names, or LLaMA-Factory's names with commas between.
fn module_names(value: &Value) -> Option<Value> {
    let names: Vec<&str> = match value {
        Value::String(names) => names.split(',').map(str::trim).collect(),
        Value::Sequence(names) => names.iter().map(Value::as_str).collect::<Option<_>>()?,
        _ => return None,
    };
    let fine = |name: &&str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    (!names.is_empty() && names.iter().all(fine)).then(|| names.into_iter().map(Value::from).collect())
}

#[cfg(test)]
#[path = "foreign_tests.rs"]
mod tests;
