//! bitsandbytes' NF4, as its `Linear4bit` is saved: codes of 4 bits, and for each block a largest magnitude, which may be
//! quantized itself.
//!
//! | tensor | type, shape |
//! | --- | --- |
//! | `X.weight` | U8 `[out·in/2, 1]`: two codes a byte, the first in the high half; or the same bytes as a wider type |
//! | `X.weight.absmax` | F32 `[out·in/64]`, or U8 under double quantization |
//! | `X.weight.quant_map` | F32 `[16]`: the levels |
//! | `X.weight.nested_absmax`, `X.weight.nested_quant_map` | F32 `[blocks/256]` and `[256]`: double quantization |
//! | `X.weight.quant_state.bitsandbytes__nf4` | JSON: block sizes, shape, type, offset |
//!
//! `absmax[i] = nested_quant_map[code]·nested_absmax[i/256] + nested_offset` in f32, each operation rounded, as bitsandbytes'
//! kernels have it (`csrc/kernels.cu`: `kDequantizeBlockwise`, then `absmax += offset`); a weight is `levels[code]·absmax`.
//! Rows that are whole blocks of 64 are kept as [`WeightType::Nf4`]. Others are dequantized when they are read, into the type that the
//! state names, as `dequantize_4bit` gives them.

use super::{Misfit, Packed, Part, Search};
use crate::error::Result;
use crate::weight_type::{NF4_LEVELS, WeightType};
use crate::weights::table::{Entry, WeightFile};
use half::{bf16, f16};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ops::Range;

const STATE: &str = ".quant_state.bitsandbytes__";
/// Numbers of a block of [`WeightType::Nf4`].
const BLOCK: usize = WeightType::Nf4.block_size();
/// The longest state: it is a short line.
const STATE_LIMIT: usize = 64 << 10;
/// How far a file's levels may be from ours: some were written in other words.
const TOLERANCE: f32 = 1e-6;

#[derive(Debug)]
pub(in crate::weights) struct Nf4 {
    /// Weights that share a magnitude, a multiple of 64.
    blocksize: usize,
    absmax: Part,
    nested: Option<Nested>,
}

/// Double quantization.
#[derive(Debug)]
struct Nested {
    absmax: Part,
    map: Part,
    /// The numbers of `map`.
    levels: Box<[f32]>,
    /// Magnitudes that share a magnitude.
    blocksize: usize,
    offset: f32,
}

#[derive(Deserialize)]
struct State {
    quant_type: String,
    blocksize: usize,
    dtype: String,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f32>,
}

pub(super) fn assemble(search: &mut Search<'_>) -> Result<()> {
    let state_of = |name: &String| name.split_once(STATE).map(|(weight, _)| (weight.to_owned(), name.clone()));
    let states: BTreeMap<String, String> = search.others.keys().filter_map(state_of).collect();
    let names = search.others.keys().map(String::as_str).chain(search.table.entries().map(|(name, _)| name));
    let quantized = names.filter_map(|name| name.strip_suffix(".absmax"));
    let has_state = |weight: &str| states.contains_key(weight);
    let lost = quantized.filter(|weight| search.others.contains_key(*weight) && !has_state(weight));
    let lost: Vec<String> = lost.map(str::to_owned).collect();
    for (weight, state) in states {
        let found = weight_of(search, &weight, &state);
        let parts = ["absmax", "quant_map", "nested_absmax", "nested_quant_map"].map(|part| format!("{weight}.{part}"));
        search.settle(&weight, found, &[parts.as_slice(), &[state]].concat())?;
    }
    for weight in lost {
        let state = format!("{weight}{STATE}nf4");
        let message = || format!("tensor `{weight}` is in blocks of bitsandbytes, and `{state}` is missing");
        let misfit = search.need(&state, message).map_or_else(|misfit| misfit, |_| Misfit::new(message()));
        search.settle(&weight, Err(misfit), &[])?;
    }
    Ok(())
}

/// A weight of its parts, all sizes checked.
fn weight_of(search: &Search<'_>, weight: &str, state: &str) -> std::result::Result<Entry, Misfit> {
    let part = |name: &str| {
        search.need(name, || format!("tensor `{name}` is missing: the NF4 weight `{weight}` cannot be read without it"))
    };
    let files = search.table.files();
    let state = read_state(files, &part(state)?, state)?;
    let (codes, numbers) = (part(weight)?, numbers_of(&state, weight)?);
    if codes.len != numbers.div_ceil(2) {
        return Err(wrong_size(
            weight,
            &format!("{} bytes", codes.len),
            &format!("{} for {:?}", numbers.div_ceil(2), state.shape),
        ));
    }
    check_levels(files, &part(&format!("{weight}.quant_map"))?, weight)?;
    let blocks = numbers.div_ceil(state.blocksize);
    let absmax = part(&format!("{weight}.absmax"))?;
    let nested = match absmax.dtype.as_str() {
        "U8" => Some(nested(search, weight, &state, blocks)?),
        _ => None,
    };
    let expected = if nested.is_some() { ("U8", blocks) } else { ("F32", blocks) };
    check_size(&absmax, &format!("{weight}.absmax"), expected)?;
    let dtype = match (state.shape[1].is_multiple_of(BLOCK), state.dtype.as_str()) {
        (true, _) => WeightType::Nf4,
        (false, "float32") => WeightType::F32,
        (false, "float16") => WeightType::F16,
        (false, _) => WeightType::BF16,
    };
    let packed = Packed::Nf4(Nf4 { blocksize: state.blocksize, absmax, nested });
    let Part { file, offset, len, .. } = codes;
    let (stored, shape) = (weight.to_owned(), state.shape);
    Ok(Entry { stored, shape, dtype, file, offset, len, permuted_heads: None, packed: Some(packed) })
}

fn read_state(files: &[WeightFile], part: &Part, name: &str) -> std::result::Result<State, Misfit> {
    if part.len > STATE_LIMIT {
        return Err(Misfit::new(format!("tensor `{name}` is a line of JSON, but takes {} bytes", part.len)));
    }
    let text = part.read(files, 0..part.len)?;
    let wrong = |why: String| Misfit::new(format!("tensor `{name}`: {why}"));
    let state: State = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
    if state.quant_type != "nf4" {
        let help = "take the unquantized model, or a folder that was quantized with bnb_4bit_quant_type=\"nf4\"";
        return Err(
            wrong(format!("quant_type {}: of bitsandbytes' 4-bit types nf4 is read", state.quant_type)).with_help(help)
        );
    }
    if state.blocksize == 0 || !state.blocksize.is_multiple_of(BLOCK) || state.nested_blocksize == Some(0) {
        return Err(wrong(format!("a blocksize of {}; expected a multiple of {BLOCK}", state.blocksize)));
    }
    Ok(state)
}

/// The weights of a matrix.
fn numbers_of(state: &State, weight: &str) -> std::result::Result<usize, Misfit> {
    let numbers = match state.shape.as_slice() {
        [rows, columns] => rows.checked_mul(*columns).filter(|&numbers| numbers > 0),
        _ => None,
    };
    numbers.ok_or_else(|| {
        Misfit::new(format!("tensor `{weight}`: its NF4 state says a shape of {:?}, no matrix", state.shape))
    })
}

fn nested(search: &Search<'_>, weight: &str, state: &State, blocks: usize) -> std::result::Result<Nested, Misfit> {
    let [absmax_name, map_name] = ["nested_absmax", "nested_quant_map"].map(|part| format!("{weight}.{part}"));
    let part = |name: &str| {
        search.need(name, || format!("tensor `{name}` is missing: `{weight}.absmax` is quantized, and needs it"))
    };
    let (Some(blocksize), Some(offset)) = (state.nested_blocksize, state.nested_offset) else {
        return Err(Misfit::new(format!(
            "tensor `{weight}`: its NF4 state names no nested_blocksize and nested_offset"
        )));
    };
    let (absmax, map) = (part(&absmax_name)?, part(&map_name)?);
    check_size(&absmax, &absmax_name, ("F32", blocks.div_ceil(blocksize)))?;
    check_size(&map, &map_name, ("F32", 256))?;
    let levels = map.floats(search.table.files(), 0..256)?.into_boxed_slice();
    Ok(Nested { absmax, map, levels, blocksize, offset })
}

fn check_levels(files: &[WeightFile], part: &Part, weight: &str) -> std::result::Result<(), Misfit> {
    let name = format!("{weight}.quant_map");
    check_size(part, &name, ("F32", NF4_LEVELS.len()))?;
    let levels = part.floats(files, 0..NF4_LEVELS.len())?;
    let is_other = |(level, ours): (&f32, f32)| level.is_nan() || (level - ours).abs() > TOLERANCE;
    let differs = levels.iter().zip(NF4_LEVELS).position(is_other);
    match differs {
        Some(i) => Err(Misfit::new(format!(
            "tensor `{name}` does not hold NF4's levels: number {i} is {}, expected {}",
            levels[i], NF4_LEVELS[i]
        ))),
        None => Ok(()),
    }
}

/// That a tensor is of this type and holds so many numbers.
fn check_size(part: &Part, name: &str, (dtype, numbers): (&str, usize)) -> std::result::Result<(), Misfit> {
    let each = if dtype == "U8" { 1 } else { 4 };
    if part.dtype == dtype && part.numbers() == Some(numbers) && numbers.checked_mul(each) == Some(part.len) {
        return Ok(());
    }
    Err(wrong_size(name, &format!("{} {:?}", part.dtype, part.shape), &format!("{dtype} [{numbers}]")))
}

fn wrong_size(name: &str, found: &str, expected: &str) -> Misfit {
    Misfit::new(format!("NF4 states of the wrong size: tensor `{name}` is {found}, expected {expected}"))
}

impl Nf4 {
    pub fn parts(&self) -> Vec<&Part> {
        let nested = self.nested.iter().flat_map(|nested| [&nested.absmax, &nested.map]);
        [&self.absmax].into_iter().chain(nested).collect()
    }

    /// The magnitudes of some blocks.
    fn magnitudes(&self, files: &[WeightFile], blocks: Range<usize>) -> Result<Vec<f32>> {
        let Some(nested) = &self.nested else { return self.absmax.floats(files, blocks) };
        let codes = self.absmax.read(files, blocks.clone())?;
        let first = blocks.start / nested.blocksize;
        let outer = nested.absmax.floats(files, first..blocks.end.div_ceil(nested.blocksize))?;
        let magnitude = |(block, code): (usize, u8)| {
            let scaled = nested.levels[usize::from(code)] * outer[block / nested.blocksize - first];
            scaled + nested.offset
        };
        Ok(blocks.zip(codes).map(magnitude).collect())
    }

    /// Appends some rows, in the entry's type.
    pub fn read(&self, files: &[WeightFile], entry: &Entry, rows: Range<usize>, out: &mut Vec<u8>) -> Result<()> {
        let columns = entry.shape[1];
        let (first, end) = (rows.start * columns, rows.end * columns);
        let bytes = first / 2..end.div_ceil(2);
        let codes = files[entry.file].read_at(entry.offset + bytes.start as u64, bytes.len())?;
        let of_block = first / self.blocksize;
        let magnitudes = self.magnitudes(files, of_block..end.div_ceil(self.blocksize))?;
        if entry.dtype == WeightType::Nf4 {
            for (i, codes) in codes.chunks_exact(BLOCK / 2).enumerate() {
                let magnitude = magnitudes[(first + i * BLOCK) / self.blocksize - of_block];
                out.extend(magnitude.to_le_bytes());
                out.extend(codes);
            }
            return Ok(());
        }
        for number in first..end {
            let code = codes[number / 2 - bytes.start] >> (4 * (1 - number % 2)) & 15;
            let value = NF4_LEVELS[usize::from(code)] * magnitudes[number / self.blocksize - of_block];
            match entry.dtype {
                WeightType::F32 => out.extend(value.to_le_bytes()),
                WeightType::F16 => out.extend(f16::from_f32(value).to_le_bytes()),
                _ => out.extend(bf16::from_f32(value).to_le_bytes()),
            }
        }
        Ok(())
    }
}
