//! Matrices in FP8 (`F8_E4M3`) with scales beside them: `weight_scale_inv` as `DeepSeek` and Qwen write it, `weight_scale` as
//! compressed-tensors does.
//!
//! `w = code·scale` (a product, despite the name) in f32, rounded to bf16: what transformers' `dequantize` and `DeepSeek`'s converter
//! give. A scale stands for 128 × 128 weights, for a row, or for all. Scales of activations say nothing of weights, and are left out.

use super::{Misfit, Packed, Part, Search};
use crate::error::Result;
use crate::weight_type::WeightType;
use crate::weights::table::{Entry, WeightFile};
use half::bf16;
use std::ops::Range;

/// Rows and columns that share a scale.
const BLOCK: usize = 128;
/// What stands beside a matrix and is no part of it, by the names that replace `weight`.
const ACTIVATIONS: [&str; 5] = ["activation_scale", "input_scale", "output_scale", "k_scale", "v_scale"];

#[derive(Debug)]
pub(in crate::weights) struct Fp8 {
    scales: Part,
    /// Rows and columns of a scale.
    block: (usize, usize),
}

pub(super) fn assemble(search: &mut Search<'_>) -> Result<()> {
    let is_fp8 = |(name, part): (&String, &Part)| (part.dtype == "F8_E4M3").then(|| name.clone());
    let weights: Vec<String> = search.others.iter().filter_map(is_fp8).collect();
    for weight in weights {
        let scales = [format!("{weight}_scale_inv"), format!("{weight}_scale")];
        let found = weight_of(search, &weight, &scales);
        let stem = weight.strip_suffix("weight").unwrap_or(&weight);
        let beside = ACTIVATIONS.map(|name| format!("{stem}{name}"));
        search.settle(&weight, found, &[scales.as_slice(), &beside].concat())?;
    }
    Ok(())
}

fn weight_of(search: &Search<'_>, weight: &str, scales: &[String; 2]) -> std::result::Result<Entry, Misfit> {
    let Part { shape, file, offset, len, .. } = search.others[weight].clone();
    let [rows, columns] = *shape.as_slice() else {
        return Err(Misfit::new(format!(
            "tensor `{weight}` is of type F8_E4M3 and shape {shape:?}; of FP8, matrices are read"
        )));
    };
    if rows.checked_mul(columns) != Some(len) {
        return Err(Misfit::new(format!("tensor `{weight}`: {len} bytes do not hold {shape:?} of FP8")));
    }
    let found = scales.iter().find_map(|name| Some((name, search.part(name)?)));
    let Some((name, scales)) = found else {
        let message =
            format!("tensor `{weight}` is of type F8_E4M3, and neither `{}` nor `{}` is there", scales[0], scales[1]);
        return Err(Misfit::new(message).with_help("take the unquantized model; FP8 without scales is not read"));
    };
    let each = match scales.dtype.as_str() {
        "F32" => 4,
        "F16" | "BF16" => 2,
        other => {
            let message = format!("tensor `{name}` is of type {other}; scales in F32, F16 and BF16 are read");
            return Err(Misfit::new(message).with_help("take the unquantized model"));
        }
    };
    let grid = [rows.div_ceil(BLOCK), columns.div_ceil(BLOCK)];
    let block = match scales.shape.as_slice() {
        [] | [1] | [1, 1] => (rows, columns),
        [all] | [all, 1] if *all == rows => (1, columns),
        found if found == grid => (BLOCK, BLOCK),
        found => {
            return Err(Misfit::new(format!(
                "tensor `{name}` is of shape {found:?}; for a weight of {shape:?} expected one number, [{rows}, 1], or {grid:?} (one for each {BLOCK} × {BLOCK})"
            )));
        }
    };
    if scales.numbers().and_then(|numbers| numbers.checked_mul(each)) != Some(scales.len) {
        return Err(Misfit::new(format!("tensor `{name}`: {} bytes do not hold {:?}", scales.len, scales.shape)));
    }
    let packed = Some(Packed::Fp8(Fp8 { scales, block }));
    let stored = weight.to_owned();
    Ok(Entry { stored, shape, dtype: WeightType::BF16, file, offset, len, permuted_heads: None, packed })
}

impl Fp8 {
    pub fn parts(&self) -> Vec<&Part> {
        vec![&self.scales]
    }

    /// Appends some rows in bf16.
    pub fn read(&self, files: &[WeightFile], entry: &Entry, rows: Range<usize>, out: &mut Vec<u8>) -> Result<()> {
        let columns = entry.shape[1];
        let codes = files[entry.file].read_at(entry.offset + (rows.start * columns) as u64, rows.len() * columns)?;
        let (height, width) = (self.block.0.max(1), self.block.1.max(1));
        let across = columns.div_ceil(width);
        let first = rows.start / height;
        let scales = self.scales.floats(files, first * across..rows.end.div_ceil(height) * across)?;
        let levels: Vec<f32> = (0..=u8::MAX).map(e4m3).collect();
        for (row, codes) in rows.zip(codes.chunks_exact(columns.max(1))) {
            let scales = &scales[(row / height - first) * across..][..across];
            for (codes, scale) in codes.chunks(width).zip(scales) {
                let number = |code: &u8| bf16::from_f32(levels[usize::from(*code)] * scale).to_le_bytes();
                out.extend(codes.iter().flat_map(number));
            }
        }
        Ok(())
    }
}

/// A number of OCP's FP8 with 4 bits of exponent (bias 7) and 3 of mantissa: no infinity, and one NaN for each sign.
fn e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * 2f32.powi(-9),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}
