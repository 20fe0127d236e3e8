//! The metadata of a GGUF file: keys and values, with typed access that names the key when a value does not fit.

use crate::error::{Error, Result};
use candle_core::quantized::gguf_file::Value;
use std::path::{Path, PathBuf};

/// The metadata of a GGUF file, in the file's order.
#[derive(Debug)]
pub struct Metadata {
    path: PathBuf,
    values: Vec<(String, Value)>,
}

impl Metadata {
    pub(super) fn new(path: &Path, values: Vec<(String, Value)>) -> Self {
        Self { path: path.to_path_buf(), values }
    }

    /// All keys and values, in the file's order.
    pub fn values(&self) -> &[(String, Value)] {
        &self.values
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    fn typed<'a, T>(&'a self, key: &str, expected: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| {
            let got = format!("{:?}", value.value_type());
            Error::file(&self.path, format!("metadata `{key}`: expected {expected}, got {got}"))
        })
    }

    /// A non-negative whole number of at most 32 bits, stored as whatever integer.
    ///
    /// # Errors
    /// When the value is of another kind.
    pub fn number(&self, key: &str) -> Result<Option<u32>> {
        self.typed(key, "a non-negative whole number of 32 bits", whole)
    }

    /// A floating-point number. An f32 becomes the shortest decimal that it stands for: `1e-5`, not `9.99999974e-6`.
    ///
    /// # Errors
    /// When the value is of another kind.
    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", |value| match value {
            Value::F32(number) => number.to_string().parse().ok(),
            Value::F64(number) => Some(*number),
            value => whole(value).map(f64::from),
        })
    }

    /// A string.
    ///
    /// # Errors
    /// When the value is of another kind.
    pub fn string(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", |value| match value {
            Value::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// A boolean.
    pub(super) fn boolean(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", |value| match value {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        })
    }

    /// An array of strings.
    ///
    /// # Errors
    /// When the value is of another kind.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<&str>>> {
        self.array(key, "an array of strings", |value| match value {
            Value::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// An array of numbers.
    pub(super) fn floats(&self, key: &str) -> Result<Option<Vec<f32>>> {
        self.array(key, "an array of numbers", |value| match value {
            Value::F32(number) => Some(*number),
            _ => None,
        })
    }

    /// An array of non-negative whole numbers.
    pub(super) fn numbers(&self, key: &str) -> Result<Option<Vec<u32>>> {
        self.array(key, "an array of non-negative whole numbers", whole)
    }

    fn array<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>> {
        self.typed(key, expected, |value| match value {
            Value::Array(values) => values.iter().map(&read).collect(),
            _ => None,
        })
    }
}

fn whole(value: &Value) -> Option<u32> {
    match *value {
        Value::U8(number) => Some(number.into()),
        Value::U16(number) => Some(number.into()),
        Value::U32(number) => Some(number),
        Value::U64(number) => number.try_into().ok(),
        Value::I8(number) => number.try_into().ok(),
        Value::I16(number) => number.try_into().ok(),
        Value::I32(number) => number.try_into().ok(),
        Value::I64(number) => number.try_into().ok(),
        _ => None,
    }
}
