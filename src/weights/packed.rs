//! Weights of a folder that are stored in several tensors: bitsandbytes' NF4, and FP8 with scales.
//!
//! It owns finding them by their tensors (whatever `quantization_config` lists), checking sizes before anything is allocated, and
//! reading rows. What other tensors a weight is made of then is no tensor of the base any more. A weight whose parts do not
//! fit is kept as one that cannot be read, with the reason: an error only where it is needed.

mod fp8;
mod nf4;

use super::table::{Entry, Table, Unread, WeightFile};
use crate::error::Result;
use crate::weight_type::WeightType;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

/// Numbers that are unpacked at a time, besides what is given back.
const PIECE: usize = 1 << 20;

/// Bytes of a part that the fingerprint covers.
const SAMPLE: usize = 4 << 10;

/// A stored tensor of any type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    /// The type, as the file writes it.
    pub dtype: String,
    pub shape: Vec<usize>,
    /// Which of the table's files holds it.
    pub file: usize,
    pub offset: u64,
    /// Its bytes.
    pub len: usize,
}

impl Part {
    /// Some of its bytes; they lie within it.
    fn read(&self, files: &[WeightFile], bytes: Range<usize>) -> Result<Vec<u8>> {
        files[self.file].read_at(self.offset + bytes.start as u64, bytes.len())
    }

    /// Some of its numbers in `f32`, of a floating type.
    fn floats(&self, files: &[WeightFile], range: Range<usize>) -> Result<Vec<f32>> {
        let each = if self.dtype == "F32" { 4 } else { 2 };
        let bytes = self.read(files, range.start * each..range.end * each)?;
        Ok(match self.dtype.as_str() {
            "F32" => bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
            "F16" => bytes.as_chunks().0.iter().map(|bytes| half::f16::from_le_bytes(*bytes).to_f32()).collect(),
            _ => bytes.as_chunks().0.iter().map(|bytes| half::bf16::from_le_bytes(*bytes).to_f32()).collect(),
        })
    }

    fn numbers(&self) -> Option<usize> {
        self.shape.iter().try_fold(1usize, |numbers, &dimension| numbers.checked_mul(dimension))
    }
}

/// How the rows of a weight are made of its parts. The entry's own bytes are its codes.
#[derive(Debug)]
pub(super) enum Packed {
    Nf4(nf4::Nf4),
    Fp8(fp8::Fp8),
}

impl Packed {
    /// What the weight is stored as, for people, where it is read in another type.
    pub fn stored_as(&self, dtype: WeightType) -> Option<&'static str> {
        match self {
            Self::Nf4(_) => dtype.is_float().then_some("NF4 in blocks that cross rows"),
            Self::Fp8(_) => Some("FP8"),
        }
    }

    /// Some rows of the weight, in the entry's type.
    pub fn read(&self, files: &[WeightFile], entry: &Entry, rows: Range<usize>) -> Result<Vec<u8>> {
        let columns = entry.shape.last().copied().unwrap_or(1);
        let mut bytes = Vec::with_capacity(entry.dtype.bytes(rows.len() * columns));
        let step = (PIECE / columns.max(1)).max(1);
        for start in rows.clone().step_by(step) {
            let piece = start..(start + step).min(rows.end);
            match self {
                Self::Nf4(packed) => packed.read(files, entry, piece, &mut bytes)?,
                Self::Fp8(packed) => packed.read(files, entry, piece, &mut bytes)?,
            }
        }
        Ok(bytes)
    }

    /// The bytes of the parts.
    pub fn bytes(&self) -> usize {
        self.parts().iter().map(|part| part.len).sum()
    }

    /// What the fingerprint says of the parts.
    pub fn hash(&self, files: &[WeightFile], hasher: &mut Sha256) -> Result<()> {
        for part in self.parts() {
            hasher.update(format!("{} {:?} {} {}\n", part.dtype, part.shape, part.file, part.offset));
            let sample = part.len.min(SAMPLE);
            let middle = (part.len - sample) / 2;
            hasher.update(part.read(files, middle..middle + sample)?);
        }
        Ok(())
    }

    fn parts(&self) -> Vec<&Part> {
        match self {
            Self::Nf4(packed) => packed.parts(),
            Self::Fp8(packed) => packed.parts(),
        }
    }
}

/// A folder's tensors while its packed weights are sought.
struct Search<'a> {
    table: &'a mut Table,
    /// Tensors of types that are no weights by themselves.
    others: &'a BTreeMap<String, Part>,
}

impl Search<'_> {
    /// The tensor of this name, whatever its type.
    fn part(&self, name: &str) -> Option<Part> {
        let entry = |entry: &Entry| Part {
            dtype: format!("{:?}", entry.dtype),
            shape: entry.shape.clone(),
            file: entry.file,
            offset: entry.offset,
            len: entry.len,
        };
        self.others.get(name).cloned().or_else(|| self.table.get(name).map(entry))
    }

    /// Puts a weight in the place of the tensors that it is made of, or the reason why it cannot be read.
    fn settle(&mut self, name: &str, found: std::result::Result<Entry, Misfit>, parts: &[String]) -> Result<()> {
        let path = self.part(name).map(|part| self.table.files()[part.file].path.clone());
        for part in parts.iter().map(String::as_str).chain([name]) {
            self.table.remove(part);
        }
        match found {
            Ok(entry) => self.table.insert(name.to_owned(), entry),
            Err(Misfit { path: other, message, help }) => {
                let path =
                    other.or(path).or_else(|| Some(self.table.files().first()?.path.clone())).unwrap_or_default();
                self.table.leave(name.to_owned(), Unread { path, message, help, is_buffer: false });
                Ok(())
            }
        }
    }

    /// A tensor that a weight cannot do without; of one in a shard that is not there, that is the reason.
    fn need(&self, name: &str, without: impl FnOnce() -> String) -> std::result::Result<Part, Misfit> {
        self.part(name).ok_or_else(|| match self.table.why_unread(name).cloned() {
            Some(Unread { path, message, help, .. }) => Misfit { path: Some(path), message, help },
            None => Misfit::new(without()),
        })
    }
}

/// Why the parts of a weight do not make one.
struct Misfit {
    /// The file that is to blame, where that is not the weight's.
    path: Option<PathBuf>,
    message: String,
    help: String,
}

impl Misfit {
    fn new(message: String) -> Self {
        let help = "the file is damaged, or was cut out of another; fetch it again, or take the unquantized model";
        Self { path: None, message, help: help.into() }
    }

    fn with_help(self, help: &str) -> Self {
        Self { help: help.into(), ..self }
    }
}

impl From<crate::error::Error> for Misfit {
    fn from(error: crate::error::Error) -> Self {
        Self::new(error.to_string())
    }
}

/// Makes one tensor of each packed weight. `others` are the tensors of types that no weight has by itself.
///
/// # Errors
/// When a file cannot be read.
pub(super) fn assemble(table: &mut Table, others: &BTreeMap<String, Part>) -> Result<()> {
    let mut search = Search { table, others };
    nf4::assemble(&mut search)?;
    fp8::assemble(&mut search)
}
