//! The head and the loss, in one chunk of tokens and in several.

use super::Judge;
use crate::support::random_weights::{random, random_weight};
use candle_core::quantized::GgmlDType;
use equipoise::error::Result;
use equipoise::ops::{Compute, HeadRequest, Pool, linear_cross_entropy, softcap};
use equipoise::rng::Rng;

pub fn compare(judge: &mut Judge<'_>) -> Result<()> {
    use GgmlDType::{F32, Q4K, Q6K, Q8_0};
    // A chunk is of 4096 tokens where the vocabulary is small, of 1024 where it is Llama 3's.
    let cases = judge.choose(
        [(F32, 4099, 20, 10), (Q8_0, 9, 64, 1001), (Q4K, 5, 256, 2047)],
        [(Q8_0, 1101, 1024, 128_256), (Q6K, 2047, 4096, 4099), (Q4K, 4099, 256, 32_001)],
    );
    for (dtype, tokens, width, vocabulary) in cases {
        compared(judge, dtype, (tokens, width, vocabulary), None)?;
    }
    for (tokens, width, vocabulary) in
        judge.choose([(9, 64, 1001), (3, 32, 512)], [(257, 2304, 256_000), (33, 64, 1001)])
    {
        compared(judge, Q8_0, (tokens, width, vocabulary), Some(CAP))?;
        logits(judge, (tokens, width, vocabulary))?;
    }
    Ok(())
}

/// A cap that many logits here lie above.
const CAP: f32 = 2.0;

fn compared(
    judge: &mut Judge<'_>,
    dtype: GgmlDType,
    (tokens, width, vocabulary): (usize, usize, usize),
    softcap: Option<f32>,
) -> Result<()> {
    let head = random_weight(vocabulary, width, dtype, 1)?;
    let (hidden, mut rng) = (random(tokens * width, 2, 3.0), Rng::new(3));
    let targets: Vec<u32> = (0..tokens).map(|_| rng.below(vocabulary as u64) as u32).collect();
    let request = HeadRequest { gradient: true, top_k: Some(20) };
    let pass = linear_cross_entropy(&hidden, &head, &targets, softcap, request, (&Pool::default(), 0))?;
    let numbers = |log_p: &[f64]| log_p.iter().map(|&x| x as f32).collect::<Vec<f32>>();
    let gradient = pass.gradient.as_ref().map_or_else(Vec::new, |gradient| gradient.to_vec());
    let expected = [numbers(&pass.log_probabilities), gradient, numbers(&pass.entropies)];
    let head = head.to_device(judge.device)?;
    let capped = softcap.map_or_else(String::new, |cap| format!(", cap {cap}"));
    let of = format!("{dtype:?} {tokens}x{width}x{vocabulary}{capped}");
    let names = ["", ": gradient", ": entropy of the largest logits"].map(|of| format!("linear_cross_entropy{of}"));
    judge.each(names.each_ref().map(|name| &**name), &of, &expected, |cuda| {
        let hidden = cuda.upload(&hidden, width)?;
        let (pass, gradient) = cuda.linear_cross_entropy(&hidden, &head, &targets, softcap, request)?;
        let gradient = gradient.map_or_else(|| Ok(Vec::new()), |gradient| cuda.download(&gradient))?;
        Ok([numbers(&pass.log_probabilities), gradient, numbers(&pass.entropies)])
    })
}

/// Logits under a cap against what the cap makes of logits without one.
fn logits(judge: &mut Judge<'_>, (tokens, width, vocabulary): (usize, usize, usize)) -> Result<()> {
    let head = random_weight(vocabulary, width, GgmlDType::Q8_0, 1)?.to_device(judge.device)?;
    let hidden = random(tokens * width, 2, 3.0);
    let f32_cuda = judge.cuda(Compute::F32);
    let mut expected = f32_cuda.logits(&f32_cuda.upload(&hidden, width)?, &head, None)?;
    softcap(&mut expected, CAP);
    judge.each(["logits"], &format!("{tokens}x{width}x{vocabulary}, cap {CAP}"), &[expected], |cuda| {
        Ok([cuda.logits(&cuda.upload(&hidden, width)?, &head, Some(CAP))?])
    })
}
