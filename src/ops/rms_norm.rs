//! Root-mean-square normalization (arXiv 1910.07467).

use super::element::Element;
use super::gemm::LANES;
use super::simd::{sum_lanes, vectorized};
use rayon::prelude::*;

/// `y = x / √(mean(x²) + ε) · w` for each row of `x: [m, d]`.
pub fn rms_norm<E: Element>(x: &[f32], weight: &[f32], epsilon: f64, y: &mut [E]) {
    let d = weight.len();
    y.par_chunks_mut(d).zip(x.par_chunks(d)).with_min_len(16).for_each(|(y, x)| {
        normalize(x, weight, epsilon, y);
    });
}

/// `dx += ∂L/∂x` for `dy = ∂L/∂y`: with `g = dy∘w`, `s = 1/√(mean(x²) + ε)`: `s·g - x·s³·mean(g∘x)`. The weight is frozen.
pub fn rms_norm_backward(x: &[f32], weight: &[f32], epsilon: f64, dy: &[f32], dx: &mut [f32]) {
    let d = weight.len();
    dx.par_chunks_mut(d).zip(x.par_chunks(d)).zip(dy.par_chunks(d)).with_min_len(16).for_each(|((dx, x), dy)| {
        pull(x, weight, epsilon, dy, dx);
    });
}

/// `1/√(mean(x²) + ε)`
#[inline(always)]
pub(super) fn inverse_root<E: Element>(x: &[E], epsilon: f64) -> f32 {
    (1.0 / (f64::from(sum_of_squares(x)) / x.len() as f64 + epsilon).sqrt()) as f32
}

/// What the gradient of `x` is made of, `s` and `s³·mean(dy∘w∘x)`: it is `dy∘w` times the one less `x` times the other.
#[inline(always)]
pub(super) fn slopes<E: Element, D: Element>(x: &[E], weight: &[f32], epsilon: f64, dy: &[D]) -> (f32, f32) {
    let scale = inverse_root(x, epsilon);
    let mean = sum_of_three(x, weight, dy) / x.len() as f32;
    (scale, scale * scale * scale * mean)
}

#[inline(always)]
fn sum_of_squares<E: Element>(x: &[E]) -> f32 {
    let mut lanes = [0f32; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += x.to_f32() * x.to_f32();
        }
    }
    sum_lanes(lanes) + tail.iter().map(|x| x.to_f32() * x.to_f32()).sum::<f32>()
}

#[inline(always)]
fn sum_of_three<A: Element, C: Element>(a: &[A], b: &[f32], c: &[C]) -> f32 {
    let mut lanes = [0f32; LANES];
    let ((a, a_tail), (b, b_tail), (c, c_tail)) =
        (a.as_chunks::<LANES>(), b.as_chunks::<LANES>(), c.as_chunks::<LANES>());
    for ((a, b), c) in a.iter().zip(b).zip(c) {
        for lane in 0..LANES {
            lanes[lane] += a[lane].to_f32() * b[lane] * c[lane].to_f32();
        }
    }
    let tail: f32 = a_tail.iter().zip(b_tail).zip(c_tail).map(|((a, b), c)| a.to_f32() * b * c.to_f32()).sum();
    sum_lanes(lanes) + tail
}

vectorized! {
    fn normalize<E: Element>(x: &[f32], weight: &[f32], epsilon: f64, y: &mut [E]) {
        let scale = inverse_root(x, epsilon);
        for ((y, x), weight) in y.iter_mut().zip(x).zip(weight) {
            *y = E::from_f32(x * scale * weight);
        }
    }
}

vectorized! {
    fn pull(x: &[f32], weight: &[f32], epsilon: f64, dy: &[f32], dx: &mut [f32]) {
        let (scale, along) = slopes(x, weight, epsilon, dy);
        for (((dx, x), weight), dy) in dx.iter_mut().zip(x).zip(weight).zip(dy) {
            *dx += dy * weight * scale - x * along;
        }
    }
}
