//! What a GGUF file's header says of its model: metadata under the architecture's name, and small tensors that Hugging Face has in
//! `config.json`.

use super::config::find;
use super::header::Record;
use super::metadata::Metadata;
use crate::error::{Error, Result};
use crate::weight_type::WeightType;
use crate::weights::table::WeightFile;
use candle_core::quantized::gguf_file::Value;
use std::path::Path;

/// The most numbers of a tensor that goes into the configuration.
const MOST_NUMBERS: usize = 1 << 16;

/// Metadata under the architecture's name.
pub(super) struct Keys<'a> {
    pub path: &'a Path,
    pub metadata: &'a Metadata,
    pub name: &'a str,
    /// Whether values of a wrong type are errors rather than absent.
    pub strict: bool,
}

impl Keys<'_> {
    fn of<T>(&self, value: Result<Option<T>>) -> Result<Option<T>> {
        if self.strict { value } else { Ok(value.ok().flatten()) }
    }

    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.name)
    }

    pub fn number(&self, key: &str) -> Result<Option<u32>> {
        self.of(self.metadata.number(&self.full(key)))
    }

    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        match self.of(self.metadata.float(&self.full(key)))? {
            Some(number) if self.strict && !number.is_finite() => Err(Error::file(
                self.path,
                format!("metadata `{}`: expected a finite number, got {number}", self.full(key)),
            )
            .with_help("fetch the file again, or convert the model again with a current llama.cpp")),
            number => Ok(number.filter(|number| number.is_finite())),
        }
    }

    pub fn boolean(&self, key: &str) -> Result<Option<bool>> {
        self.of(self.metadata.boolean(&self.full(key)))
    }

    pub fn string(&self, key: &str) -> Result<Option<&str>> {
        self.metadata.string(&self.full(key))
    }

    pub fn demanded(&self, key: &str) -> Result<Option<u32>> {
        self.present(key, self.number(key)?)
    }

    /// As [`Self::of_layers`], of a key that must be there.
    pub fn demanded_of_layers(&self, key: &str, layers: Option<u32>) -> Result<Option<u32>> {
        self.present(key, self.of_layers(key, layers)?)
    }

    pub fn demanded_float(&self, key: &str) -> Result<Option<f64>> {
        self.present(key, self.float(key)?)
    }

    fn present<T>(&self, key: &str, value: Option<T>) -> Result<Option<T>> {
        if value.is_none() && self.strict {
            return Err(Error::file(self.path, format!("metadata has no `{}`", self.full(key)))
                .with_help("convert the model again with a current llama.cpp"));
        }
        Ok(value)
    }

    /// A number that may be given for each layer. As many as there are layers must then be the same.
    pub fn of_layers(&self, key: &str, layers: Option<u32>) -> Result<Option<u32>> {
        let Some(Value::Array(_)) = self.metadata.get(&self.full(key)) else { return self.number(key) };
        let Some(mut numbers) = self.of(self.metadata.numbers(&self.full(key)))? else { return Ok(None) };
        numbers.truncate(layers.map_or(usize::MAX, |layers| layers as usize));
        match numbers.split_first() {
            Some((first, rest)) if rest.iter().all(|number| number == first) => Ok(Some(*first)),
            Some(_) if !self.strict => Ok(None),
            _ => Err(Error::file(
                self.path,
                format!(
                    "metadata `{}` differs from layer to layer ({numbers:?}), which is not supported",
                    self.full(key)
                ),
            )),
        }
    }

    /// How many keys a query sees; `None` where all. llama.cpp's converter writes 0 for that.
    pub fn window(&self) -> Result<Option<u32>> {
        Ok(self.number("attention.sliding_window")?.filter(|&window| window > 0))
    }

    /// Which of the layers see only a window: listed, or all but the last of each `period`.
    pub fn sliding_layers(&self, layers: usize, period: u32) -> Result<Vec<bool>> {
        let key = self.full("attention.sliding_window_pattern");
        let Some(Value::Array(listed)) = self.metadata.get(&key) else {
            let period = self.number("attention.sliding_window_pattern")?.unwrap_or(period) as usize;
            return Ok((0..layers).map(|layer| period == 0 || layer % period + 1 < period).collect());
        };
        let flags: Option<Vec<bool>> = listed
            .iter()
            .map(|value| match value {
                Value::Bool(flag) => Some(*flag),
                _ => None,
            })
            .collect();
        flags.filter(|flags| flags.len() >= layers).map(|flags| flags[..layers].to_vec()).ok_or_else(|| {
            Error::file(
                self.path,
                format!("metadata `{key}`: expected a period, or true or false for each of {layers} layers"),
            )
        })
    }

    /// The error for a tensor that is missing beside another one.
    pub fn without(&self, tensor: &str) -> Error {
        Error::file(self.path, format!("has no tensor `{tensor}`"))
            .with_help("fetch the file again, or convert the model again with a current llama.cpp")
    }

    /// The error for a value that is known and not supported.
    pub fn unsupported(&self, key: &str, value: impl std::fmt::Display) -> Error {
        Error::file(self.path, format!("metadata `{}` is {value}, which is not supported", self.full(key)))
            .with_help("use the model's Hugging Face folder, or another file of it")
    }
}

/// The file's tensors, before they are in a table.
pub(super) struct Tensors<'a> {
    pub file: &'a WeightFile,
    pub records: &'a [Record],
}

impl Tensors<'_> {
    pub fn record(&self, name: &str) -> Option<&Record> {
        find(self.records, name)
    }

    /// The numbers of a small tensor of f32.
    pub fn numbers(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let Some(record) = self.record(name) else { return Ok(None) };
        let wrong = |what: String| Error::file(&self.file.path, format!("tensor `{name}`: {what}"));
        let ([count], Ok(WeightType::F32)) = (record.shape.as_slice(), &record.dtype) else {
            return Err(wrong(format!("expected a vector of F32, got the shape {:?}", record.shape)));
        };
        if *count > MOST_NUMBERS {
            return Err(wrong(format!("{count} numbers; at most {MOST_NUMBERS}")));
        }
        if record.offset.checked_add(4 * *count as u64).is_none_or(|end| end > self.file.len) {
            return Err(wrong("is beyond the file's end".into()).with_help("the file is cut short; fetch it again"));
        }
        let bytes = self.file.read_at(record.offset, 4 * count)?;
        Ok(Some(bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()))
    }
}
