//! What joins a branch (attention, MLP) to the residual stream, where it is more than a sum: a factor, or a norm of the branch.
//! The stream is `f32`, the branch of the compute type.

use super::element::Element;
use super::rms_norm::{inverse_root, slopes};
use super::simd::vectorized;
use rayon::prelude::*;

/// Numbers of a task where rows do not matter.
const TASK: usize = 1 << 14;

/// `y = onto + factor·branch`, number by number.
pub fn add_scaled<E: Element>(onto: &[f32], branch: &[E], factor: f32, y: &mut [f32]) {
    let parts = y.par_chunks_mut(TASK).zip(onto.par_chunks(TASK)).zip(branch.par_chunks(TASK));
    parts.for_each(|((y, onto), branch)| add(onto, branch, factor, y));
}

/// `y = onto + x / √(mean(x²) + ε) · w` for each row `x` of `branch: [m, d]`.
pub fn add_normalized<E: Element>(onto: &[f32], branch: &[E], weight: &[f32], epsilon: f64, y: &mut [f32]) {
    let d = weight.len();
    let rows = y.par_chunks_mut(d).zip(onto.par_chunks(d)).zip(branch.par_chunks(d));
    rows.with_min_len(16).for_each(|((y, onto), x)| add_row(onto, x, weight, epsilon, y));
}

/// The gradient of the branch of [`add_normalized`] for `dy: [m, d]`: with `g = dy∘w`, `s = 1/√(mean(x²) + ε)`:
/// `s·g - x·s³·mean(g∘x)`. That of the stream is `dy` itself. The weight is frozen.
pub fn branch_norm_backward<E: Element>(branch: &[E], weight: &[f32], epsilon: f64, dy: &[f32], d_branch: &mut [E]) {
    let d = weight.len();
    let rows = d_branch.par_chunks_mut(d).zip(branch.par_chunks(d)).zip(dy.par_chunks(d));
    rows.with_min_len(16).for_each(|((d_branch, x), dy)| pull(x, weight, epsilon, dy, d_branch));
}

/// `y = factor·x`, rounded.
pub fn scaled<E: Element>(x: &[f32], factor: f32, y: &mut [E]) {
    y.par_chunks_mut(TASK).zip(x.par_chunks(TASK)).for_each(|(y, x)| scale(x, factor, y));
}

vectorized! {
    fn add<E: Element>(onto: &[f32], branch: &[E], factor: f32, y: &mut [f32]) {
        for ((y, onto), branch) in y.iter_mut().zip(onto).zip(branch) {
            *y = onto + factor * branch.to_f32();
        }
    }
}

vectorized! {
    fn add_row<E: Element>(onto: &[f32], x: &[E], weight: &[f32], epsilon: f64, y: &mut [f32]) {
        let scale = inverse_root(x, epsilon);
        for (((y, onto), x), weight) in y.iter_mut().zip(onto).zip(x).zip(weight) {
            *y = onto + x.to_f32() * scale * weight;
        }
    }
}

vectorized! {
    fn pull<E: Element>(x: &[E], weight: &[f32], epsilon: f64, dy: &[f32], dx: &mut [E]) {
        let (scale, along) = slopes(x, weight, epsilon, dy);
        for (((dx, x), weight), dy) in dx.iter_mut().zip(x).zip(weight).zip(dy) {
            *dx = E::from_f32(dy * weight * scale - x.to_f32() * along);
        }
    }
}

vectorized! {
    fn scale<E: Element>(x: &[f32], factor: f32, y: &mut [E]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = E::from_f32(x * factor);
        }
    }
}
