//! What joins a branch to the residual stream, and factors of rows.

use super::Judge;
use crate::support::random_weights::{random, random_weight};
use candle_core::quantized::GgmlDType;
use candle_core::{Device as Place, Tensor};
use equipoise::error::Result;
use equipoise::ops::{FrozenVector, add_normalized, add_scaled, branch_norm_backward, scaled};

const EPSILON: f64 = 1e-6;
const FACTOR: f32 = 0.22;

pub fn compare(judge: &mut Judge<'_>) -> Result<()> {
    for &(rows, width) in judge.choose(&[(5, 66), (3, 2304)][..], &[(2047, 4096), (7, 4098), (129, 578)]) {
        joined(judge, rows, width)?;
        multiplied(judge, rows, width)?;
    }
    embedded(judge)
}

fn joined(judge: &mut Judge<'_>, rows: usize, width: usize) -> Result<()> {
    let [onto, branch, dy] = [1, 2, 3].map(|seed| random(rows * width, seed, 2.0));
    let weight = Tensor::from_vec(random(width, 4, 1.5), width, &Place::Cpu)?;
    let weight = FrozenVector::new(&weight, judge.device)?;
    let [mut y, mut d_branch] = [1, 2].map(|_| vec![0f32; rows * width]);
    add_normalized(&onto, &branch, weight.numbers(), EPSILON, &mut y);
    branch_norm_backward(&branch, weight.numbers(), EPSILON, &dy, &mut d_branch);
    let names = ["add_normalized", "add_normalized backward"];
    judge.each(names, &format!("{rows}x{width}"), &[y, d_branch], |cuda| {
        let (onto, branch, dy) = (cuda.upload(&onto, width)?, cuda.upload(&branch, width)?, cuda.upload(&dy, width)?);
        let y = cuda.add_normalized(&onto, &branch, &weight, EPSILON)?;
        let d_branch = cuda.branch_norm_backward(&branch, &weight, EPSILON, &dy)?;
        Ok([cuda.download(&y)?, cuda.download(&d_branch)?])
    })
}

fn multiplied(judge: &mut Judge<'_>, rows: usize, width: usize) -> Result<()> {
    let [onto, branch] = [1, 2].map(|seed| random(rows * width, seed, 2.0));
    let [mut added, mut product] = [1, 2].map(|_| vec![0f32; rows * width]);
    add_scaled(&onto, &branch, FACTOR, &mut added);
    scaled(&branch, FACTOR, &mut product);
    let sum = onto.iter().zip(&branch).map(|(a, b)| a + b).collect();
    let names = ["add_scaled", "scaled", "add_to"];
    judge.each(names, &format!("{rows}x{width}"), &[added, product, sum], |cuda| {
        let (onto, branch) = (cuda.upload(&onto, width)?, cuda.upload(&branch, width)?);
        let added = cuda.add_scaled(&onto, &branch, FACTOR)?;
        let product = cuda.scaled(&branch, FACTOR)?;
        cuda.add_to(&branch, &onto)?;
        Ok([cuda.download(&added)?, cuda.download(&product)?, cuda.download(&onto)?])
    })
}

/// Embeddings, as they are and times a factor.
fn embedded(judge: &mut Judge<'_>) -> Result<()> {
    let (vocabulary, width) = judge.choose((11, 64), (1001, 4096));
    let weight = random_weight(vocabulary, width, GgmlDType::Q8_0, 1)?;
    let ids: Vec<u32> = (0..vocabulary as u32).rev().step_by(2).collect();
    let mut rows = vec![0f32; vocabulary * width];
    weight.dequantize_rows(0..vocabulary, &mut rows)?;
    let plain: Vec<f32> = ids.iter().flat_map(|&id| &rows[id as usize * width..][..width]).copied().collect();
    let mut times = vec![0f32; plain.len()];
    scaled(&plain, 50.6, &mut times);
    judge.each(["embed", "embed with a factor"], &format!("{}x{width}", ids.len()), &[plain, times], |cuda| {
        let (plain, times) = (cuda.embed(&weight, &ids, 1.0)?, cuda.embed(&weight, &ids, 50.6)?);
        Ok([cuda.download(&plain)?, cuda.download(&times)?])
    })
}
