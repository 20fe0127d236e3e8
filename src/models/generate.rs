//! Text, token by token, with a cache of keys and values; in `f32`.

use super::CausalLm;
use super::forward::{Cache, Runner};
use crate::device::Device;
use crate::ops::Pool;
use crate::rng::{Rng, key, name_key};
use candle_core::{Result, bail};

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// 0 takes the likeliest token; else logits are divided by it.
    pub temperature: f64,
    /// Only the so many likeliest tokens are in the draw.
    pub top_k: Option<usize>,
    /// Only the likeliest tokens whose probabilities reach this sum are in the draw.
    pub top_p: Option<f64>,
    /// Decides the draws.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: None, top_p: None, seed: 0 }
    }
}

/// Continues a prompt.
pub struct Generator<'a> {
    lm: &'a CausalLm,
    runner: Runner<'a>,
    cache: Cache,
    pool: Pool,
    tokens: usize,
    sampling: Sampling,
    rng: Rng,
}

impl<'a> Generator<'a> {
    /// Starts with an empty cache; without `adapter` it is the base that speaks.
    pub fn new(lm: &'a CausalLm, device: &'a Device, adapter: bool, sampling: Sampling) -> Self {
        let runner = lm.runner(device, adapter);
        let cache = Cache::new(runner, lm.dimensions.layers);
        let rng = Rng::new(key(sampling.seed, &[name_key("sampling")]));
        Self { lm, runner, cache, pool: Pool::default(), tokens: 0, sampling, rng }
    }

    /// Feeds tokens and gives the logits after the last of them, `[vocabulary]`.
    ///
    /// # Errors
    /// For no token at all, for ids outside of the vocabulary, and past the model's last position.
    pub fn feed(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        let end = self.tokens + ids.len();
        if ids.is_empty() || end > self.lm.dimensions.max_positions {
            bail!(
                "{end} tokens: expected 1 to {}, which is what the model was made for",
                self.lm.dimensions.max_positions
            );
        }
        let (last, cache) = (ids.len() - 1, Some(&self.cache));
        let logits = self.lm.logits_after(self.runner, ids, last, self.tokens, cache, &self.pool)?;
        self.tokens = end;
        Ok(logits)
    }

    /// Continues `prompt` by at most `max_tokens`, or until one of `ends`; each token goes to `on_token`, which may stop by
    /// answering `false`. Gives whether an end token was met (it is not handed to `on_token`).
    ///
    /// # Errors
    /// As [`Self::feed`].
    pub fn run(
        &mut self,
        prompt: &[u32],
        max_tokens: usize,
        ends: &[u32],
        mut on_token: impl FnMut(u32) -> bool,
    ) -> Result<bool> {
        let room = self.lm.dimensions.max_positions.saturating_sub(self.tokens + prompt.len());
        let mut logits = self.feed(prompt)?;
        for produced in 0..max_tokens.min(room + 1) {
            let token = self.choose(&logits);
            if ends.contains(&token) {
                return Ok(true);
            }
            if !on_token(token) || produced == room || produced + 1 == max_tokens {
                break;
            }
            logits = self.feed(&[token])?;
        }
        Ok(false)
    }

    fn choose(&mut self, logits: &[f32]) -> u32 {
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        let logit = |id: u32| f64::from(logits[id as usize]);
        if self.sampling.temperature <= 0.0 {
            // The first of the largest, as argmax has it.
            return order.into_iter().reduce(|best, id| if logit(id) > logit(best) { id } else { best }).unwrap_or(0);
        }
        order.sort_by(|&a, &b| logit(b).total_cmp(&logit(a)).then(a.cmp(&b)));
        order.truncate(self.sampling.top_k.unwrap_or(order.len()).max(1));
        let top = logit(order[0]);
        let weights: Vec<f64> = order.iter().map(|&id| ((logit(id) - top) / self.sampling.temperature).exp()).collect();
        let total: f64 = weights.iter().sum();
        let limit = self.sampling.top_p.unwrap_or(1.0) * total;
        let mut kept = 0.0;
        let count = weights.iter().take_while(|&&weight| (kept < limit).then(|| kept += weight).is_some()).count();
        let mut draw = self.rng.uniform() * weights[..count.max(1)].iter().sum::<f64>();
        for (&id, weight) in order.iter().zip(&weights[..count.max(1)]) {
            draw -= weight;
            if draw < 0.0 {
                return id;
            }
        }
        order[count.max(1) - 1]
    }
}
