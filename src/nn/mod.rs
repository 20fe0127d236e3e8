//! Building blocks.

mod lora_config;
mod quantization;

pub use lora_config::{LoraConfig, TargetKeyword, TargetModules};
pub use quantization::{QuantizationConfig, QuantizationType, fallback_of};
