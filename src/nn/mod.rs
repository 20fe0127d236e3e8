//! Building blocks of models: frozen linear layers with adapters, and what their forward pass needs to know.
//!
//! It owns the adapter's variables ([`AdapterParams`]) and how weights become layers ([`Builder`]); it knows no
//! architecture.

mod backend;
mod builder;
mod context;
mod cpu_backend;
mod decoder_layer;
mod gpu_backend;
mod gradients;
mod linear;
mod lora_config;
mod mlp;
mod params;
mod quantization;
mod rehearsal;
mod residual;
mod rope;
mod self_attention;

pub use backend::{Backend, Head, Norm, Prediction, Reference};
pub use builder::{BuildReport, Builder};
pub use context::{ForwardContext, KvCache};
pub use decoder_layer::{Activations, DecoderLayer};
pub use gpu_backend::{GpuBatch, GpuContext, KeptRows};
pub use gradients::Gradients;
pub use linear::{Linear, LinearGroup, LoraAdapter};
pub use lora_config::{LoraConfig, TargetKeyword, TargetModules};
pub use mlp::Mlp;
pub use params::{AdapterParams, peft_name};
pub use quantization::{QuantizationConfig, QuantizationType, fallback_of};
pub use rehearsal::Rehearsal;
pub use residual::{FrozenNorm, Join, Residual};
pub use rope::{LongRope, Rope, Temperature};
pub use self_attention::{QkNorm, SelfAttention};
