//! The gate of an MLP: `silu(gate) · up` (arXiv 2002.05202).

use super::element::Element;
use super::simd::{sigmoid, vectorized};
use rayon::prelude::*;

/// `y = silu(gate)∘up`, `silu(x) = x / (1 + e⁻ˣ)`, for rows `[gate, up]` of `gate_up: [m, 2·width]`; `y: [m, width]`.
pub fn swiglu<E: Element>(gate_up: &[E], width: usize, y: &mut [E]) {
    y.par_chunks_mut(width).zip(gate_up.par_chunks(2 * width)).with_min_len(8).for_each(|(y, gate_up)| {
        let (gate, up) = gate_up.split_at(width);
        row(gate, up, y);
    });
}

/// The gradients of gate and up, side by side as they lie, for `dy: [m, width]`: with `σ = 1/(1 + e⁻ᵍ)`,
/// `dg = dy·up·σ·(1 + g·(1 - σ))` and `du = dy·g·σ`.
pub fn swiglu_backward<E: Element>(gate_up: &[E], width: usize, dy: &[f32], d_gate_up: &mut [E]) {
    let rows = d_gate_up.par_chunks_mut(2 * width).zip(gate_up.par_chunks(2 * width)).zip(dy.par_chunks(width));
    rows.with_min_len(8).for_each(|((d_gate_up, gate_up), dy)| {
        let (gate, up) = gate_up.split_at(width);
        let (d_gate, d_up) = d_gate_up.split_at_mut(width);
        row_backward(gate, up, dy, d_gate, d_up);
    });
}

vectorized! {
    fn row<E: Element>(gate: &[E], up: &[E], y: &mut [E]) {
        for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
            let gate = gate.to_f32();
            *y = E::from_f32(gate * sigmoid::<FMA>(gate) * up.to_f32());
        }
    }
}

vectorized! {
    fn row_backward<E: Element>(gate: &[E], up: &[E], dy: &[f32], d_gate: &mut [E], d_up: &mut [E]) {
        for ((((gate, up), dy), d_gate), d_up) in gate.iter().zip(up).zip(dy).zip(d_gate).zip(d_up) {
            let (gate, up) = (gate.to_f32(), up.to_f32());
            let s = sigmoid::<FMA>(gate);
            *d_gate = E::from_f32(dy * up * s * (1.0 + gate * (1.0 - s)));
            *d_up = E::from_f32(dy * gate * s);
        }
    }
}
