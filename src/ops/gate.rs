//! The gate of an MLP: an activation of one half times the other (arXiv 2002.05202).

use super::element::Element;
use super::simd::{sigmoid, vectorized};
use rayon::prelude::*;

/// What becomes of a gate before it is multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x·σ(x)`, `σ(x) = 1/(1 + e⁻ˣ)`.
    Silu,
    /// `x/2·(1 + tanh z)` with `z = √(2/π)·(x + 0.044715·x³)`, PyTorch's `gelu` of the kind `tanh`. It is `x·σ(2z)`, where
    /// nothing cancels.
    GeluTanh,
}

/// `y = act(gate)∘up` for rows `[gate, up]` of `gate_up: [m, 2·width]`; `y: [m, width]`.
pub fn gate<E: Element>(activation: Activation, gate_up: &[E], width: usize, y: &mut [E]) {
    y.par_chunks_mut(width).zip(gate_up.par_chunks(2 * width)).with_min_len(8).for_each(|(y, gate_up)| {
        let (gate, up) = gate_up.split_at(width);
        match activation {
            Activation::Silu => row::<E, Silu>(gate, up, y),
            Activation::GeluTanh => row::<E, GeluTanh>(gate, up, y),
        }
    });
}

/// The gradients of gate and up, side by side as they lie, for `dy: [m, width]`: with `act(g) = g·σ(u)`, `σ = σ(u(g))`:
/// `dg = dy·up·σ·(1 + g·(1 - σ)·u'(g))` and `du = dy·g·σ`.
pub fn gate_backward<E: Element>(activation: Activation, gate_up: &[E], width: usize, dy: &[f32], d_gate_up: &mut [E]) {
    let rows = d_gate_up.par_chunks_mut(2 * width).zip(gate_up.par_chunks(2 * width)).zip(dy.par_chunks(width));
    rows.with_min_len(8).for_each(|((d_gate_up, gate_up), dy)| {
        let (gate, up) = gate_up.split_at(width);
        let (d_gate, d_up) = d_gate_up.split_at_mut(width);
        match activation {
            Activation::Silu => row_backward::<E, Silu>(gate, up, dy, d_gate, d_up),
            Activation::GeluTanh => row_backward::<E, GeluTanh>(gate, up, dy, d_gate, d_up),
        }
    });
}

/// An activation `g·σ(u(g))`.
trait Inner {
    /// `u(g)` and its slope.
    fn of(gate: f32) -> (f32, f32);
}

struct Silu;

impl Inner for Silu {
    #[inline(always)]
    fn of(gate: f32) -> (f32, f32) {
        (gate, 1.0)
    }
}

struct GeluTanh;

impl Inner for GeluTanh {
    #[inline(always)]
    fn of(gate: f32) -> (f32, f32) {
        /// `√(2/π)`
        const ROOT: f32 = 0.797_884_6;
        // Beyond 10 the sigmoid is saturated, and the cube could overflow.
        let x = if gate > 10.0 { 10.0 } else { gate };
        let x = if x < -10.0 { -10.0 } else { x };
        let square = 0.044_715 * x * x;
        (2.0 * ROOT * x * (1.0 + square), 2.0 * ROOT * (1.0 + 3.0 * square))
    }
}

vectorized! {
    fn row<E: Element, A: Inner>(gate: &[E], up: &[E], y: &mut [E]) {
        for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
            let gate = gate.to_f32();
            *y = E::from_f32(gate * sigmoid::<FMA>(A::of(gate).0) * up.to_f32());
        }
    }
}

vectorized! {
    fn row_backward<E: Element, A: Inner>(gate: &[E], up: &[E], dy: &[f32], d_gate: &mut [E], d_up: &mut [E]) {
        for ((((gate, up), dy), d_gate), d_up) in gate.iter().zip(up).zip(dy).zip(d_gate).zip(d_up) {
            let (gate, up) = (gate.to_f32(), up.to_f32());
            let (inner, slope) = A::of(gate);
            let s = sigmoid::<FMA>(inner);
            *d_gate = E::from_f32(dy * up * s * (1.0 + gate * (1.0 - s) * slope));
            *d_up = E::from_f32(dy * gate * s);
        }
    }
}
