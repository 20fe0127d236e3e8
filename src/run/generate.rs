//! Text from a base and an adapter.

use super::output::now;
use super::prepare::{encoder, ends, open_device};
use super::trained_on::TrainedOn;
use crate::data::{Encoder, Message, Role};
use crate::device::DeviceConfig;
use crate::error::{Error, Result};
use crate::models::{Generator, Sampling};
use crate::train::Observer;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Instant;

/// What to generate from.
#[derive(Debug, Clone)]
pub struct GenerateRequest {
    /// An adapter: a folder that `train` wrote, or PEFT's, mlx-lm's or llama.cpp's.
    pub adapter: PathBuf,
    /// Another base than the adapter names.
    pub base: Option<String>,
    /// Leave the adapter out.
    pub base_only: bool,
    /// A system message.
    pub system: Option<String>,
    /// No chat template.
    pub raw: bool,
    /// The prompt.
    pub prompt: String,
    /// The most tokens to generate.
    pub max_tokens: usize,
    /// How a token is chosen.
    pub sampling: Sampling,
    /// Fetch nothing.
    pub offline: bool,
    /// The device.
    pub device: DeviceConfig,
}

/// What was generated.
#[derive(Debug, Clone, Serialize)]
pub struct GenerateSummary {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated.
    pub tokens: usize,
    /// Seconds, loading left out.
    pub seconds: f64,
    /// Whether the model itself ended.
    pub finished_by_eos: bool,
    /// The text.
    pub text: String,
}

/// Loads base and adapter, and continues the prompt; text goes to `on_text` as it comes, which may stop by answering
/// `false`.
///
/// The base is the one that the folder's `recipe.yaml` names, held as it was in training; else the one of
/// `adapter_config.json`.
///
/// # Errors
/// When base or adapter cannot be read or do not fit each other, or the prompt is too long.
pub fn generate(
    request: &GenerateRequest,
    observer: &mut dyn Observer,
    on_text: &mut dyn FnMut(&str) -> bool,
) -> Result<GenerateSummary> {
    let device = open_device(request.device)?;
    let trained_on = TrainedOn::of(&request.adapter, request.base.as_deref())?;
    let (base, mut model) = trained_on.model(None, &device, request.offline, observer)?;
    let encoder = encoder(&base, trained_on.chat_template(&base)?.as_deref(), now())?;
    let prompt = encode_prompt(request, &encoder, model.lm.dimensions.max_positions)?;

    model.lm.fit_rotations(prompt.len() + request.max_tokens);
    let start = Instant::now();
    let ends = ends(&base, &encoder);
    let mut stream = encoder.stream(true);
    let (mut text, mut tokens, mut failed) = (String::new(), 0, None);
    let mut generator = Generator::new(&model.lm, &device, !request.base_only, request.sampling);
    let finished_by_eos = generator.run(&prompt, request.max_tokens, &ends, |token| {
        tokens += 1;
        match stream.push(token) {
            Ok(piece) => {
                text.push_str(&piece);
                piece.is_empty() || on_text(&piece)
            }
            Err(error) => {
                failed = Some(error);
                false
            }
        }
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    let rest = stream.finish()?;
    if !rest.is_empty() {
        text.push_str(&rest);
        on_text(&rest);
    }
    let seconds = start.elapsed().as_secs_f64();
    Ok(GenerateSummary { prompt_tokens: prompt.len(), tokens, seconds, finished_by_eos, text })
}

/// The prompt's tokens, through the chat template where there is one and it is wanted; `limit` is the model's positions.
fn encode_prompt(request: &GenerateRequest, encoder: &Encoder, limit: usize) -> Result<Vec<u32>> {
    let prompt = if request.raw || encoder.template().is_none() {
        encoder.encode_text(&request.prompt)?
    } else {
        let system = request.system.iter().map(|text| Message::new(Role::System, text));
        encoder.encode_prompt(&system.chain([Message::user(&request.prompt)]).collect::<Vec<_>>())?
    };
    if prompt.is_empty() || prompt.len() >= limit {
        return Err(Error::invalid(format!("the prompt has {} tokens; expected 1 to {}", prompt.len(), limit - 1)));
    }
    Ok(prompt)
}
