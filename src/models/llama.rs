//! Llama: pre-normalized attention with rotary positions and grouped queries, and a gated MLP.
//!
//! Llama 1 to 3, SmolLM2, TinyLlama and what else calls itself `llama`. Source: arXiv 2302.13971, and
//! `modeling_llama.py` of transformers for names and shapes.

use super::config::Config;
use super::decoder::{Decoder, Defaults, Family, Names};
use crate::error::Result;
use crate::nn::Builder;

pub(super) const FAMILY: Family = Family {
    model_type: "llama",
    models: "Llama 1 to 3, SmolLM2, R1-Distill-Llama, OpenBioLLM, Meditron",
    names: Names::LLAMA,
    defaults: Defaults::LLAMA,
    describe: decoder,
};

fn decoder(config: &Config<'_>, builder: &Builder<'_>) -> Result<Decoder> {
    Decoder::new(config, &Defaults::LLAMA, builder)
}
