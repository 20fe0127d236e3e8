//! Norms of heads, and what joins a branch to the stream.

use super::*;
use crate::ops::{
    AttentionShape, HeadNorms, add_normalized, add_scaled, branch_norm_backward, composed, normalize_heads,
    normalize_heads_backward, rms_norm, rms_norm_backward, scaled,
};

struct Norms {
    shape: AttentionShape,
    query: Vec<f32>,
    key: Vec<f32>,
}

impl Norms {
    /// Weights of a head, or of all heads together.
    fn new((heads, kv_heads, head_dim): (usize, usize, usize), whole: bool) -> Self {
        let count = |heads| if whole { heads * head_dim } else { head_dim };
        let weight = |count, seed| random(count, seed).into_iter().map(|x| x + 0.5).collect();
        let shape = AttentionShape::new(heads, kv_heads, head_dim);
        Self { shape, query: weight(count(heads), 11), key: weight(count(kv_heads), 12) }
    }

    fn norms(&self) -> HeadNorms<'_> {
        HeadNorms { query: &self.query, key: &self.key, epsilon: 1e-5 }
    }
}

impl Operation for Norms {
    fn forward<E: Element>(&self, inputs: &[Vec<f32>]) -> Vec<f32> {
        let mut y = soiled::<E>(inputs[0].len());
        normalize_heads(&rounded::<E>(&inputs[0]), self.shape, self.norms(), &mut y);
        widened(&y)
    }

    fn backward<E: Element>(&self, inputs: &[Vec<f32>], dy: &[f32]) -> Vec<Vec<f32>> {
        let mut d = rounded::<E>(dy);
        normalize_heads_backward(&rounded::<E>(&inputs[0]), self.shape, self.norms(), &mut d);
        vec![widened(&d)]
    }

    fn composed(&self, inputs: &[Tensor]) -> Tensor {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        let rows = inputs[0].reshape(((), self.shape.width())).unwrap();
        let part = |start, count| rows.narrow(1, start * head_dim, count * head_dim).unwrap().contiguous().unwrap();
        let weight = |x: &[f32]| Tensor::from_slice(x, x.len(), &Device::Cpu).unwrap();
        let q = composed::head_norm(&part(0, heads), &weight(&self.query), 1e-5).unwrap();
        let k = composed::head_norm(&part(heads, kv_heads), &weight(&self.key), 1e-5).unwrap();
        Tensor::cat(&[q, k, part(heads + kv_heads, kv_heads)], 1).unwrap()
    }
}

#[test]
fn norms_of_heads_are_right_forward_and_backward() {
    for heads in [(4, 2, 8), (3, 1, 10), (1, 1, 7), (2, 2, 64), (5, 1, 33)] {
        for (whole, tokens) in [(false, 1), (false, 19), (true, 5), (true, 40)] {
            let operation = Norms::new(heads, whole);
            let x = random(tokens * operation.shape.width(), 5);
            check(&format!("norms of {heads:?}, whole: {whole}, {tokens} tokens"), &operation, &[x]);
        }
    }
}

/// A head is normalized as a row of the stream is, to the bit, and values and their gradients pass.
#[test]
fn a_head_is_normalized_as_a_row_is() {
    let operation = Norms::new((3, 2, 20), false);
    let (width, d) = (operation.shape.width(), 20);
    let (inputs, dy) = ([random(6 * width, 5)], random(6 * width, 6));
    let (y, dx) = (operation.forward::<f32>(&inputs), operation.backward::<f32>(&inputs, &dy).remove(0));
    let [x] = inputs;
    for head in 0..x.len() / d {
        let range = head * d..(head + 1) * d;
        let weight = match head % 7 {
            0..3 => &operation.query,
            3..5 => &operation.key,
            _ => {
                assert_eq!(y[range.clone()], x[range.clone()]);
                assert_eq!(dx[range.clone()], dy[range]);
                continue;
            }
        };
        let (mut expected, mut slope) = (soiled::<f32>(d), vec![0.0; d]);
        rms_norm(&x[range.clone()], weight, 1e-5, &mut expected);
        rms_norm_backward(&x[range.clone()], weight, 1e-5, &dy[range.clone()], &mut slope);
        assert_eq!(y[range.clone()], expected);
        assert_eq!(dx[range], slope);
    }
}

/// The stream, and the branch.
struct Normalized {
    weight: Vec<f32>,
}

impl Operation for Normalized {
    fn forward<E: Element>(&self, inputs: &[Vec<f32>]) -> Vec<f32> {
        let mut y = soiled::<f32>(inputs[0].len());
        add_normalized(&inputs[0], &rounded::<E>(&inputs[1]), &self.weight, 1e-5, &mut y);
        y
    }

    fn backward<E: Element>(&self, inputs: &[Vec<f32>], dy: &[f32]) -> Vec<Vec<f32>> {
        let mut d_branch = soiled::<E>(dy.len());
        branch_norm_backward(&rounded::<E>(&inputs[1]), &self.weight, 1e-5, dy, &mut d_branch);
        vec![dy.to_vec(), widened(&d_branch)]
    }

    fn composed(&self, inputs: &[Tensor]) -> Tensor {
        let d = self.weight.len();
        let weight = Tensor::from_slice(&self.weight, d, &Device::Cpu).unwrap();
        let [onto, branch] = [0, 1].map(|i| inputs[i].reshape(((), d)).unwrap());
        (onto + composed::rms_norm(&branch, &weight, 1e-5).unwrap()).unwrap()
    }
}

#[test]
fn a_normalized_branch_is_right_forward_and_backward() {
    for (rows, d) in [(12, 32), (1, 7), (37, 100), (3, 2048)] {
        let weight = random(d, 4).into_iter().map(|x| x + 0.5).collect();
        let inputs = [random(rows * d, 5), random(rows * d, 6)];
        check(&format!("normalized branch {rows}×{d}"), &Normalized { weight }, &inputs);
    }
}

/// The stream, and the branch times a factor; the branch's gradient is that of the stream times the factor, rounded.
struct AddScaled(f32);

impl Operation for AddScaled {
    fn forward<E: Element>(&self, inputs: &[Vec<f32>]) -> Vec<f32> {
        let mut y = soiled::<f32>(inputs[0].len());
        add_scaled(&inputs[0], &rounded::<E>(&inputs[1]), self.0, &mut y);
        y
    }

    fn backward<E: Element>(&self, _inputs: &[Vec<f32>], dy: &[f32]) -> Vec<Vec<f32>> {
        let mut d_branch = soiled::<E>(dy.len());
        scaled(dy, self.0, &mut d_branch);
        vec![dy.to_vec(), widened(&d_branch)]
    }

    fn composed(&self, inputs: &[Tensor]) -> Tensor {
        (&inputs[0] + (&inputs[1] * f64::from(self.0)).unwrap()).unwrap()
    }
}

#[test]
fn a_scaled_branch_is_right_forward_and_backward() {
    for (count, factor) in [(1, 0.22), (1000, 1.5), (40_000, -0.3)] {
        check(&format!("{count} numbers times {factor}"), &AddScaled(factor), &[random(count, 5), random(count, 6)]);
    }
}

#[test]
fn a_factor_of_one_is_a_sum() {
    let (onto, branch) = (random(33_001, 1), random(33_001, 2));
    let expected: Vec<f32> = onto.iter().zip(&branch).map(|(a, b)| a + b).collect();
    assert_eq!(AddScaled(1.0).forward::<f32>(&[onto, branch]), expected);
}
