//! What an adapter was trained on: its base, how that was held, and the chat template.

use super::CHAT_TEMPLATE;
use super::prepare::open_base;
use crate::adapter::{AdapterBundle, AdapterSummary};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::fs::{file_inside, read_within};
use crate::hub::BaseConfig;
use crate::models::{self, Model};
use crate::nn::{QuantizationConfig, QuantizationType};
use crate::recipe::Recipe;
use crate::train::{Event, Observer};
use crate::weights::Base;
use std::path::{Path, PathBuf};

/// The most bytes of a chat template.
const MOST_TEMPLATE: u64 = 4 << 20;

/// The base of an adapter.
pub(super) struct TrainedOn {
    adapter: PathBuf,
    config: BaseConfig,
    /// How the weights were held, where the folder has the recipe.
    quantization: Option<QuantizationConfig>,
    /// Whether somebody named another base than the adapter does.
    pub given: bool,
}

impl TrainedOn {
    /// The base that the folder's `recipe.yaml` names, else the one that the adapter names; `base` takes precedence over both.
    ///
    /// # Errors
    /// When the adapter cannot be read, or no base is named.
    pub fn of(adapter: &Path, base: Option<&str>) -> Result<Self> {
        let recipe_path = adapter.join("recipe.yaml");
        let recipe = if recipe_path.is_file() { Some(Recipe::load(&recipe_path, &[])?) } else { None };
        let quantization = recipe.as_ref().map(|recipe| recipe.quantization);
        let named = |model: &str| BaseConfig { model: model.to_owned(), file: None };
        let config = match (base, recipe) {
            (Some(model), _) => named(model),
            (None, Some(recipe)) => recipe.base,
            (None, None) => named(&AdapterSummary::read(adapter)?.base_model),
        };
        if config.model.is_empty() {
            return Err(Error::file(adapter, "names no base").with_help("give one with `--base MODEL`"));
        }
        Ok(Self { adapter: adapter.to_owned(), config, quantization, given: base.is_some() })
    }

    /// Finds the base and opens it.
    ///
    /// # Errors
    /// When it is not there or cannot be read.
    pub fn open(&self, offline: bool, observer: &mut dyn Observer) -> Result<Base> {
        open_base(&self.config, offline, observer).map_err(|error| {
            let help = error.help().map(|help| format!("{help}; ")).unwrap_or_default();
            error.with_help(format!("{help}`--base MODEL` says where the base is that the adapter was trained on"))
        })
    }

    /// How the weights were held in training. Those of a base that nobody trained on here are taken as they are stored.
    ///
    /// # Errors
    /// When the base cannot be read.
    pub fn held(&self, base: &Base, adapter: &AdapterBundle) -> Result<QuantizationConfig> {
        let stored = QuantizationConfig { kind: QuantizationType::None };
        let known = match &adapter.config.base_sha256 {
            Some(known) => *known == base.fingerprint()?,
            None => !self.given,
        };
        Ok(match self.quantization {
            _ if base.is_gguf() => QuantizationConfig::default(),
            Some(quantization) if known => quantization,
            _ => stored,
        })
    }

    /// The base, and the model with this adapter: held as it was in training, or as `quantization` says.
    ///
    /// # Errors
    /// When base or adapter cannot be read or do not fit each other.
    pub fn model(
        &self,
        quantization: Option<QuantizationConfig>,
        device: &Device,
        offline: bool,
        observer: &mut dyn Observer,
    ) -> Result<(Base, Model)> {
        let base = self.open(offline, observer)?;
        let bundle = self.adapter(&base, observer)?;
        let held = quantization.map_or_else(|| self.held(&base, &bundle), Ok)?;
        observer.event(&Event::Phase("loading the weights".into()));
        let model = models::load(&base, held, Some(&bundle.config.lora), 0, device, false)?;
        model.params.assign(&bundle.tensors, &self.adapter)?;
        Ok((base, model))
    }

    /// The base as the adapter or its recipe names it.
    pub fn base_name(&self) -> &str {
        &self.config.model
    }

    /// Reads the adapter, and compares the base with the one that it was trained on.
    ///
    /// # Errors
    /// When the adapter does not fit, or the base that it names is no longer what it was. A base that somebody named is
    /// only noted.
    pub fn adapter(&self, base: &Base, observer: &mut dyn Observer) -> Result<AdapterBundle> {
        let bundle = AdapterBundle::load(&self.adapter, base)?;
        let known = bundle.config.base_sha256.as_deref();
        if let Some(known) = known.filter(|_| !self.given)
            && known != base.fingerprint()?
        {
            let message =
                format!("is not the base that {} was trained on: its files have changed", self.adapter.display());
            return Err(Error::file(base.path(), message)
                .with_help(format!("`--base {}` takes it all the same", self.config.model)));
        }
        if self.given && known.is_some_and(|known| base.fingerprint().is_ok_and(|now| now != known)) {
            observer.event(&Event::Note(format!(
                "{} is not the base that {} was trained on (its fingerprint is another one); of one with the same shapes nothing \
                 else can be said",
                base.path().display(),
                self.adapter.display()
            )));
        }
        Ok(bundle)
    }

    /// The chat template that the adapter brings along, where that is not its base's: what it was trained on.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn chat_template(&self, base: &Base) -> Result<Option<String>> {
        let Some(path) = file_inside(&self.adapter, CHAT_TEMPLATE)? else { return Ok(None) };
        let text = String::from_utf8(read_within(&path, MOST_TEMPLATE)?);
        let text = text.map_err(|_| Error::file(path, "is not UTF-8 text"))?;
        Ok(Some(text).filter(|text| base.chat_template() != Some(text.as_str())))
    }
}
