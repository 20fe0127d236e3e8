//! Operations on rows, and numbers of GGML blocks.

use super::{Judge, branch, heads};
use crate::support::random_weights::{random, weight_of_bytes};
use candle_core::{Device as Place, Tensor};
use equipoise::error::Result;
use equipoise::ops::cuda::{RowDropout, TYPES};
use equipoise::ops::dequantize::dequantize;
use equipoise::ops::{Activation, Compute, Dropout, FrozenVector, gate, gate_backward, rms_norm, rms_norm_backward};
use equipoise::rng::{key, mix};
use half::bf16;

const EPSILON: f64 = 1e-5;

pub fn compare(judge: &mut Judge<'_>) -> Result<()> {
    dequantized(judge)?;
    for &(rows, width) in judge.choose(&[(5, 66), (3, 2304)][..], &[(2047, 4096), (33, 14336), (7, 4098), (129, 578)]) {
        normalized(judge, rows, width)?;
        dropped(judge, rows, width)?;
        moved(judge, rows, width)?;
    }
    for &(rows, width) in judge.choose(&[(5, 50), (3, 2056)][..], &[(2047, 14336), (9, 1538), (31, 4098)]) {
        gated(judge, Activation::Silu, rows, width)?;
        gated(judge, Activation::GeluTanh, rows, width)?;
    }
    heads::compare(judge)?;
    branch::compare(judge)
}

/// Random bytes, which no quantizer writes too: scales that are subnormal, infinite, or no number.
fn dequantized(judge: &mut Judge<'_>) -> Result<()> {
    let (rows, columns) = judge.choose((3, 512), (129, 14336));
    for (dtype, _) in TYPES {
        let count = rows * columns / dtype.block_size() * dtype.type_size();
        let start = key(7, &[count as u64]);
        let bytes: Vec<u8> = (0..count as u64).map(|i| mix(start.wrapping_add(i)) as u8).collect();
        let mut expected = vec![0f32; (rows - 1) * columns];
        dequantize(dtype, &bytes[count / rows..], &mut expected);
        let weight = weight_of_bytes(rows, columns, dtype, bytes)?.to_device(judge.device)?;
        let of = format!("{dtype:?} {rows}x{columns}");
        judge.each_bit(["dequantize"], &of, &[expected], |cuda| {
            let count = (rows - 1) * columns;
            let out = cuda.gpu.allocate(count * cuda.compute.bytes())?;
            cuda.dequantize(&weight, 1..rows, &out)?;
            Ok([match cuda.compute {
                Compute::F32 => out.read::<f32>(0, count)?,
                Compute::Bf16 => out.read::<bf16>(0, count)?.into_iter().map(bf16::to_f32).collect(),
            }])
        })?;
    }
    Ok(())
}

fn normalized(judge: &mut Judge<'_>, rows: usize, width: usize) -> Result<()> {
    let [x, dy, before] = [1, 2, 3].map(|seed| random(rows * width, seed, 1.0));
    let weight = Tensor::from_vec(random(width, 4, 1.5), width, &Place::Cpu)?;
    let weight = FrozenVector::new(&weight, judge.device)?;
    let (mut y, mut dx) = (vec![0f32; rows * width], before.clone());
    rms_norm(&x, weight.numbers(), EPSILON, &mut y);
    rms_norm_backward(&x, weight.numbers(), EPSILON, &dy, &mut dx);
    judge.each(["rms_norm", "rms_norm backward"], &format!("{rows}x{width}"), &[y, dx], |cuda| {
        let (x, dy, dx) = (cuda.upload(&x, width)?, cuda.upload(&dy, width)?, cuda.upload(&before, width)?);
        let y = cuda.rms_norm(&x, &weight, EPSILON)?;
        cuda.rms_norm_backward(&x, &weight, EPSILON, &dy, &dx)?;
        Ok([cuda.download(&y)?, cuda.download(&dx)?])
    })
}

fn gated(judge: &mut Judge<'_>, activation: Activation, rows: usize, width: usize) -> Result<()> {
    let (gate_up, dy) = (random(2 * rows * width, 1, 4.0), random(rows * width, 2, 1.0));
    let (mut y, mut d_gate_up) = (vec![0f32; rows * width], vec![0f32; 2 * rows * width]);
    gate(activation, &gate_up, width, &mut y);
    gate_backward(activation, &gate_up, width, &dy, &mut d_gate_up);
    let names = match activation {
        Activation::Silu => ["swiglu", "swiglu backward"],
        Activation::GeluTanh => ["geglu", "geglu backward"],
    };
    judge.each(names, &format!("{rows}x{width}"), &[y, d_gate_up], |cuda| {
        let (gate_up, dy) = (cuda.upload(&gate_up, 2 * width)?, cuda.upload(&dy, width)?);
        let y = cuda.gate(activation, &gate_up)?;
        let d_gate_up = cuda.gate_backward(activation, gate_up, &dy)?;
        Ok([cuda.download(&y)?, cuda.download(&d_gate_up)?])
    })
}

fn dropped(judge: &mut Judge<'_>, rows: usize, width: usize) -> Result<()> {
    let keys: Vec<u64> = (0..rows as u64).map(|i| key(5, &[i])).collect();
    let (x, before) = (random(rows * width, 1, 1.0), random(rows * width, 2, 1.0));
    let dropout = Dropout { probability: 0.3, row_keys: &keys, layer_key: key(6, &[1]) };
    let (mut out, mut added) = (vec![0f32; rows * width], before.clone());
    dropout.apply(&x, &mut out, width);
    dropout.apply_add(&x, &mut added, width);
    judge.each_bit(["dropout", "dropout added"], &format!("{rows}x{width}"), &[out, added], |cuda| {
        let keys = cuda.dropout_keys(&keys)?;
        let drop = RowDropout { keys: &keys, probability: dropout.probability, layer_key: dropout.layer_key };
        let (x, out, added) = (cuda.upload(&x, width)?, cuda.rows(rows, width)?, cuda.upload(&before, width)?);
        cuda.dropout(&x, drop, &out, false)?;
        cuda.dropout(&x, drop, &added, true)?;
        Ok([cuda.download(&out)?, cuda.download(&added)?])
    })
}

/// Every other row is picked; those go back to where they were; rows times a factor.
fn moved(judge: &mut Judge<'_>, rows: usize, width: usize) -> Result<()> {
    let x = random(rows * width, 1, 1.0);
    let (places, factors): (Vec<usize>, Vec<f32>) = ((1..rows).step_by(2).collect(), random(rows, 2, 3.0));
    let row = |i: usize| &x[i * width..][..width];
    let picked = places.iter().flat_map(|&i| row(i)).copied().collect();
    let put = (0..rows).flat_map(|i| row(i).iter().map(move |x| if i % 2 == 1 { *x } else { 0.0 })).collect();
    let scaled = x.chunks_exact(width).zip(&factors).flat_map(|(x, f)| x.iter().map(move |x| x * f)).collect();
    judge.each_bit(["gather", "scatter", "scale"], &format!("{rows}x{width}"), &[picked, put, scaled], |cuda| {
        let (x, places) = (cuda.upload(&x, width)?, cuda.places(&places)?);
        let picked = cuda.gather(&x, &places)?;
        let put = cuda.scatter(&picked, &places, rows)?;
        cuda.scale(&x, &factors)?;
        Ok([cuda.download(&picked)?, cuda.download(&put)?, cuda.download(&x)?])
    })
}
