//! Random numbers and quantized weights of any size, fast.

use candle_core::quantized::QTensor;
use candle_core::{Device as Place, Result, Tensor, bail};
use equipoise::ops::FrozenWeight;
use equipoise::rng::{key, mix};
use equipoise::weight_type::WeightType;
use half::bf16;
use rayon::prelude::*;

/// Numbers that are quantized; larger weights are made of their blocks.
const SAMPLE: usize = 1 << 16;

/// Uniform in `±scale`, all of which `bf16` has: whoever computes in either type begins with the same numbers.
pub fn random(count: usize, seed: u64, scale: f32) -> Vec<f32> {
    let start = key(seed, &[count as u64]);
    let number = |i: u64| {
        let share = (mix(start.wrapping_add(i)) >> 40) as f32 / (1u64 << 24) as f32;
        bf16::from_f32((2.0 * share - 1.0) * scale).to_f32()
    };
    (0..count as u64).into_par_iter().map(number).collect()
}

/// A random weight `[rows, columns]` that keeps the mean square of what it is multiplied with.
pub fn random_weight(rows: usize, columns: usize, dtype: impl Into<WeightType>, seed: u64) -> Result<FrozenWeight> {
    random_weight_of(rows, columns, dtype, seed, (3.0 / columns as f32).sqrt())
}

/// A random weight of numbers in `±scale`.
pub fn random_weight_of(
    rows: usize,
    columns: usize,
    dtype: impl Into<WeightType>,
    seed: u64,
    scale: f32,
) -> Result<FrozenWeight> {
    let dtype = dtype.into();
    let sample = Tensor::from_vec(random(SAMPLE, seed, scale), SAMPLE, &Place::Cpu)?;
    let Some(kind) = dtype.candle() else { bail!("{dtype:?} is no type to quantize to") };
    let sample = QTensor::quantize(&sample, kind)?;
    let (sample, block) = (sample.data()?, dtype.type_size());
    let blocks = (rows * columns / dtype.block_size()) as u64;
    let start = key(seed, &[rows as u64, columns as u64]);
    let mut bytes = vec![0u8; blocks as usize * block];
    bytes.par_chunks_exact_mut(block).enumerate().with_min_len(256).for_each(|(i, out)| {
        let chosen = mix(start.wrapping_add(i as u64)) % (sample.len() / block) as u64;
        out.copy_from_slice(&sample[chosen as usize * block..][..block]);
    });
    weight_of_bytes(rows, columns, dtype, bytes)
}

/// A weight of these blocks.
pub fn weight_of_bytes(
    rows: usize,
    columns: usize,
    dtype: impl Into<WeightType>,
    bytes: Vec<u8>,
) -> Result<FrozenWeight> {
    FrozenWeight::new(dtype.into(), (rows, columns), bytes)
}
