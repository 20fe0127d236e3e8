//! Soft caps of scores and logits, `c·tanh(x/c)` (Gemma 2), and what scores are without one.

use super::simd::{tanh_and_rest, vectorized};
use rayon::prelude::*;

/// What becomes of a product of a query and a key before the softmax.
pub(super) trait Score: Copy {
    /// The score of a product.
    fn of<const FMA: bool>(self, product: f32) -> f32;
    /// The score, and its slope by the scaled product.
    fn with_slope<const FMA: bool>(self, product: f32) -> (f32, f32);
}

/// `scale·x`
#[derive(Debug, Clone, Copy)]
pub(super) struct Scaled(pub(super) f32);

impl Score for Scaled {
    #[inline(always)]
    fn of<const FMA: bool>(self, product: f32) -> f32 {
        product * self.0
    }

    #[inline(always)]
    fn with_slope<const FMA: bool>(self, product: f32) -> (f32, f32) {
        (product * self.0, 1.0)
    }
}

/// `c·tanh(scale·x/c)`
#[derive(Debug, Clone, Copy)]
pub(super) struct Capped {
    cap: f32,
    /// `scale/c`
    factor: f32,
}

impl Capped {
    pub(super) fn new(scale: f32, cap: f32) -> Self {
        Self { cap, factor: scale / cap }
    }
}

impl Score for Capped {
    #[inline(always)]
    fn of<const FMA: bool>(self, product: f32) -> f32 {
        self.cap * tanh_and_rest::<FMA>(product * self.factor).0
    }

    /// The slope is `1 - tanh²`.
    #[inline(always)]
    fn with_slope<const FMA: bool>(self, product: f32) -> (f32, f32) {
        let (t, rest) = tanh_and_rest::<FMA>(product * self.factor);
        (self.cap * t, rest * (1.0 + t.abs()))
    }
}

/// `x = c·tanh(x/c)`, in place, all threads at once.
pub fn softcap(x: &mut [f32], cap: f32) {
    x.par_chunks_mut(1 << 14).for_each(|x| cap_all(x, cap));
}

vectorized! {
    /// `x = c·tanh(x/c)`
    pub(super) fn cap_all(x: &mut [f32], cap: f32) {
        let score = Capped::new(1.0, cap);
        for x in x {
            *x = score.of::<FMA>(*x);
        }
    }
}

/// The slope of a logit, from what it has become.
pub(super) trait Slope: Copy {
    /// The slope where the logit has become `capped`.
    fn at(self, capped: f32) -> f32;
}

/// Logits as they are.
#[derive(Debug, Clone, Copy)]
pub(super) struct NoCap;

impl Slope for NoCap {
    #[inline(always)]
    fn at(self, _: f32) -> f32 {
        1.0
    }
}

/// `c·tanh(x/c)`, whose slope is `1 - tanh²`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cap(pub(super) f32);

impl Slope for Cap {
    #[inline(always)]
    fn at(self, capped: f32) -> f32 {
        let t = capped / self.0;
        (1.0 - t) * (1.0 + t)
    }
}
