//! Text from a base and an adapter.

use super::CHAT_TEMPLATE;
use super::output::now;
use super::prepare::{encoder, ends, open_base};
use crate::adapter::AdapterBundle;
use crate::data::{Encoder, Message, Role};
use crate::device::DeviceConfig;
use crate::error::{Error, Result};
use crate::hub::BaseConfig;
use crate::models::{self, Generator, Sampling};
use crate::nn::QuantizationConfig;
use crate::recipe::Recipe;
use crate::train::Observer;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What to generate from.
#[derive(Debug, Clone)]
pub struct GenerateRequest {
    /// An adapter folder, as `train` writes it or PEFT does.
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
    let device = request.device.open()?;
    let bundle = AdapterBundle::load(&request.adapter)?;
    let (config, quantization) = which_base(request, &bundle)?;
    let base = open_base(&config, request.offline, observer)?;
    let quantization = if base.is_gguf() { QuantizationConfig::default() } else { quantization };
    let model = models::load(&base, quantization, Some(&bundle.config.lora), 0, &device, false)?;
    model.params.assign(&bundle.tensors, &request.adapter.join("adapter_model.safetensors"))?;

    let encoder = encoder(&base, own_template(&request.adapter)?.as_deref(), now())?;
    let prompt = encode_prompt(request, &encoder, model.lm.dimensions.max_positions)?;

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

/// The base that the adapter was trained on, held as it was; or the one that was asked for.
fn which_base(request: &GenerateRequest, bundle: &AdapterBundle) -> Result<(BaseConfig, QuantizationConfig)> {
    let recipe_path = request.adapter.join("recipe.yaml");
    let recipe = if recipe_path.is_file() { Some(Recipe::load(&recipe_path, &[])?) } else { None };
    let (mut config, quantization) = match recipe {
        Some(recipe) => (recipe.base, recipe.quantization),
        None => (
            BaseConfig { model: bundle.config.base_model_name_or_path.clone(), file: None },
            QuantizationConfig::default(),
        ),
    };
    if let Some(model) = &request.base {
        config = BaseConfig { model: model.clone(), file: None };
    }
    if config.model.is_empty() {
        return Err(Error::file(&request.adapter, "names no base").with_help("give one with `--base`"));
    }
    Ok((config, quantization))
}

/// The chat template that an adapter brings along, as one does that was not trained on its base's.
fn own_template(adapter: &Path) -> Result<Option<String>> {
    let path = adapter.join(CHAT_TEMPLATE);
    if !path.is_file() {
        return Ok(None);
    }
    std::fs::read_to_string(&path).map(Some).map_err(Error::io("read", path))
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
