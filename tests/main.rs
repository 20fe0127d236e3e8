//! All integration tests, a module a theme, in one binary: linking is what takes time.

#![expect(clippy::unwrap_used, reason = "a test may")]

mod accumulation;
mod architecture;
mod bad_input;
mod chat_templates;
mod cli;
mod compare;
mod compare_objectives;
mod contamination;
#[cfg(all(feature = "cuda", target_os = "linux"))]
mod cuda_driver;
mod cuda_kernels;
mod data;
mod eval;
mod evaluation;
mod export;
mod export_gguf;
mod families;
mod families_export;
mod families_gguf;
mod gpu_runs;
mod gpu_steps;
mod gpu_work;
mod gradients;
mod hub;
mod jinja;
mod objectives;
mod parity;
mod quantized_bases;
mod recipes;
mod reported;
mod resume;
mod statistics;
mod support;
mod tape;
mod text_scores;
mod training;
mod unknown_models;
