//! The head and the loss, in one chunk of tokens and in several.

use super::Judge;
use crate::support::random_weights::{random, random_weight};
use candle_core::quantized::GgmlDType;
use equipoise::error::Result;
use equipoise::ops::{Pool, linear_cross_entropy};
use equipoise::rng::Rng;

pub fn compare(judge: &mut Judge<'_>) -> Result<()> {
    use GgmlDType::{F32, Q4K, Q6K, Q8_0};
    // A chunk is of 4096 tokens where the vocabulary is small, of 1024 where it is Llama 3's.
    let cases = judge.choose(
        [(F32, 4099, 20, 10), (Q8_0, 9, 64, 1001), (Q4K, 5, 256, 2047)],
        [(Q8_0, 1101, 1024, 128_256), (Q6K, 2047, 4096, 4099), (Q4K, 4099, 256, 32_001)],
    );
    for (dtype, tokens, width, vocabulary) in cases {
        compared(judge, dtype, (tokens, width, vocabulary))?;
    }
    Ok(())
}

fn compared(judge: &mut Judge<'_>, dtype: GgmlDType, (tokens, width, vocabulary): (usize, usize, usize)) -> Result<()> {
    let head = random_weight(vocabulary, width, dtype, 1)?;
    let (hidden, mut rng) = (random(tokens * width, 2, 3.0), Rng::new(3));
    let targets: Vec<u32> = (0..tokens).map(|_| rng.below(vocabulary as u64) as u32).collect();
    let pass = linear_cross_entropy(&hidden, &head, &targets, true, None, (&Pool::default(), 0))?;
    let numbers = |log_p: &[f64]| log_p.iter().map(|&x| x as f32).collect::<Vec<f32>>();
    let gradient = pass.gradient.as_ref().map_or_else(Vec::new, |gradient| gradient.to_vec());
    let (expected, head) = ([numbers(&pass.log_probabilities), gradient], head.to_device(judge.device)?);
    let of = format!("{dtype:?} {tokens}x{width}x{vocabulary}");
    judge.each(["linear_cross_entropy", "linear_cross_entropy: gradient"], &of, &expected, |cuda| {
        let hidden = cuda.upload(&hidden, width)?;
        let (pass, gradient) = cuda.linear_cross_entropy(&hidden, &head, &targets, true)?;
        let gradient = gradient.map_or_else(|| Ok(Vec::new()), |gradient| cuda.download(&gradient))?;
        Ok([numbers(&pass.log_probabilities), gradient])
    })
}
