//! Groups of frozen matrices with their updates.

use super::*;
use crate::ops::{Dropout, Group, Module, SavedInput, Update, UpdateGradient, composed};

/// One module of a group.
struct Part {
    weight: FrozenWeight,
    bias: Option<Vec<f32>>,
    update: Option<PartUpdate>,
}

struct PartUpdate {
    rank: usize,
    scale: f32,
    /// Probability and layer key.
    dropout: Option<(f32, u64)>,
}

impl Part {
    fn new(rows: usize, columns: usize, kind: GgmlDType, rank: usize) -> Self {
        let update = (rank > 0).then_some(PartUpdate { rank, scale: 2.0, dropout: None });
        Self { weight: weight(rows, columns, kind, rows as u64), bias: None, update }
    }

    fn with_bias(mut self) -> Self {
        self.bias = Some(random(self.weight.rows(), 50));
        self
    }

    fn with_dropout(mut self, key: u64) -> Self {
        self.update.as_mut().unwrap().dropout = Some((0.3, key));
        self
    }
}

/// Inputs: `x`, then `A` and `B` of each update.
struct Linear {
    parts: Vec<Part>,
    row_keys: Vec<u64>,
}

impl Linear {
    fn new(parts: Vec<Part>, m: usize) -> Self {
        Self { parts, row_keys: (0..m as u64).map(|i| i * i + 3).collect() }
    }

    fn columns(&self) -> usize {
        self.parts[0].weight.columns()
    }

    fn outputs(&self) -> usize {
        self.parts.iter().map(|part| part.weight.rows()).sum()
    }

    fn inputs(&self) -> Vec<Vec<f32>> {
        let mut inputs = vec![random(self.row_keys.len() * self.columns(), 1)];
        for (i, part) in self.parts.iter().enumerate() {
            let Some(update) = &part.update else { continue };
            inputs.push(random(update.rank * self.columns(), 20 + i as u64));
            inputs.push(random(part.weight.rows() * update.rank, 30 + i as u64));
        }
        inputs
    }

    fn with<R>(&self, inputs: &[Vec<f32>], f: impl FnOnce(&Group<'_>) -> R) -> R {
        let mut factors = inputs[1..].chunks_exact(2);
        let modules: Vec<Module<'_>> = self
            .parts
            .iter()
            .map(|part| Module {
                weight: &part.weight,
                bias: part.bias.as_deref(),
                update: part.update.as_ref().map(|update| {
                    let [a, b] = factors.next().unwrap() else { unreachable!() };
                    let dropout = update.dropout.map(|(probability, layer_key)| Dropout {
                        probability,
                        row_keys: &self.row_keys,
                        layer_key,
                    });
                    Update { a, b, rank: update.rank, scale: update.scale, dropout }
                }),
            })
            .collect();
        let m = self.row_keys.len();
        let pool = soiled_pool(&[m * self.columns(), 16 * m, 1 << 20, 4096]);
        f(&Group { modules: &modules, pool: &pool, capacity: m + 5 })
    }

    /// The gradients of the updates, and that of `x` if wanted.
    fn pull<E: Element>(&self, inputs: &[Vec<f32>], dy: &[f32], wanted: bool) -> Vec<Vec<f32>> {
        let (x, dy) = (rounded::<E>(&inputs[0]), rounded::<E>(dy));
        self.with(inputs, |group| {
            let down = group.down(&x);
            let mut dx = soiled::<f32>(x.len());
            let mut sums: Vec<Vec<f32>> = inputs[1..].iter().map(|input| vec![0.0; input.len()]).collect();
            let mut pairs = sums.chunks_exact_mut(2);
            let mut gradients: Vec<Option<UpdateGradient<'_>>> = self
                .parts
                .iter()
                .map(|part| {
                    part.update.as_ref()?;
                    let [a, b] = pairs.next().unwrap() else { unreachable!() };
                    Some(UpdateGradient { a, b })
                })
                .collect();
            let saved = SavedInput { x: &x, down: &down };
            group.backward(saved, &dy, wanted.then_some(&mut dx[..]), &mut gradients).unwrap();
            drop(gradients);
            sums.splice(0..0, wanted.then_some(dx));
            sums
        })
    }
}

impl Operation for Linear {
    fn forward<E: Element>(&self, inputs: &[Vec<f32>]) -> Vec<f32> {
        let x = rounded::<E>(&inputs[0]);
        self.with(inputs, |group| {
            let down = group.down(&x);
            let saved = SavedInput { x: &x, down: &down };
            let mut y = soiled::<E>(self.row_keys.len() * self.outputs());
            group.forward(saved, &mut y).unwrap();
            // Added to what is there, it is the same.
            let mut added = vec![1.0; y.len()];
            group.forward_add(saved, &mut added).unwrap();
            for y in &mut added {
                *y -= 1.0;
            }
            let y = widened(&y);
            close("forward_add", &added, &y, if E::GROUP == 1 { 1e-5 } else { 1e-2 });
            y
        })
    }

    fn backward<E: Element>(&self, inputs: &[Vec<f32>], dy: &[f32]) -> Vec<Vec<f32>> {
        let all = self.pull::<E>(inputs, dy, true);
        assert_eq!(all[1..], self.pull::<E>(inputs, dy, false), "without dx the updates' gradients are the same");
        all
    }

    fn composed(&self, inputs: &[Tensor]) -> Tensor {
        let x = inputs[0].reshape(((), self.columns())).unwrap();
        let mut factors = inputs[1..].chunks_exact(2);
        let outputs: Vec<Tensor> = self
            .parts
            .iter()
            .map(|part| {
                let mut y = composed::linear(&x, &part.weight).unwrap();
                if let Some(bias) = &part.bias {
                    y = y.broadcast_add(&Tensor::from_slice(bias, bias.len(), &Device::Cpu).unwrap()).unwrap();
                }
                let Some(update) = &part.update else { return y };
                let [a, b] = factors.next().unwrap() else { unreachable!() };
                let a = a.reshape((update.rank, ())).unwrap();
                let b = b.reshape(((), update.rank)).unwrap();
                let dropped = update.dropout.map_or_else(
                    || x.clone(),
                    |(probability, layer_key)| {
                        let dropout = Dropout { probability, row_keys: &self.row_keys, layer_key };
                        let masks = dropout.masks(self.columns());
                        assert!(masks.contains(&0.0));
                        (&x * Tensor::from_vec(masks, x.shape(), &Device::Cpu).unwrap()).unwrap()
                    },
                );
                let update_y = dropped.matmul(&a.t().unwrap()).unwrap().matmul(&b.t().unwrap()).unwrap();
                (y + (update_y * f64::from(update.scale)).unwrap()).unwrap()
            })
            .collect();
        Tensor::cat(&outputs, 1).unwrap()
    }
}

fn check_group(name: &str, parts: Vec<Part>, m: usize) {
    let linear = Linear::new(parts, m);
    check(&format!("{name}, {m} rows"), &linear, &linear.inputs());
}

/// From a few rows, which go a way of their own, to more than a block.
const ROWS: [usize; 6] = [1, 4, 5, 10, 67, 300];

#[test]
fn a_frozen_matrix_is_right_forward_and_backward() {
    for m in ROWS {
        check_group("q8_0", vec![Part::new(48, 64, GgmlDType::Q8_0, 0)], m);
        check_group("f32, with a bias", vec![Part::new(50, 36, GgmlDType::F32, 0).with_bias()], m);
    }
}

#[test]
fn an_update_is_right_forward_and_backward() {
    for m in ROWS {
        // One row and one rank: a single number, whose parts may cancel to anything.
        for rank in [1, 3, 4, 8, 16, 49].into_iter().filter(|rank| rank * m > 1) {
            check_group(&format!("rank {rank}"), vec![Part::new(48, 64, GgmlDType::Q8_0, rank)], m);
        }
        let dropped = Part::new(48, 64, GgmlDType::Q8_0, 3).with_bias().with_dropout(5);
        check_group("rank 3 under dropout, with a bias", vec![dropped], m);
    }
}

#[test]
fn modules_that_share_an_input_are_right_forward_and_backward() {
    let kind = GgmlDType::Q4_0;
    for m in ROWS {
        let two = vec![Part::new(96, 64, kind, 4), Part::new(34, 64, kind, 4)];
        check_group("two modules", two, m);
        let three =
            vec![Part::new(64, 64, kind, 3).with_bias(), Part::new(32, 64, kind, 5), Part::new(70, 64, kind, 2)];
        check_group("three modules of odd ranks", three, m);
        let middle =
            vec![Part::new(64, 64, kind, 0), Part::new(32, 64, kind, 7), Part::new(32, 64, kind, 0).with_bias()];
        check_group("an update in the middle alone", middle, m);
        let ends = vec![Part::new(64, 64, kind, 9), Part::new(32, 64, kind, 0), Part::new(32, 64, kind, 4)];
        check_group("updates at both ends", ends, m);
        let dropped = |rows, rank, key| Part::new(rows, 64, kind, rank).with_dropout(key);
        check_group("dropout on all", vec![dropped(64, 3, 1), dropped(32, 4, 2), dropped(48, 1, 3)], m);
        check_group("dropout on one", vec![Part::new(64, 64, kind, 3), dropped(32, 4, 2).with_bias()], m);
    }
}

/// More numbers than a panel holds, forward and backward, and more outputs than a block of depth.
#[test]
fn panels_and_blocks_join_without_a_seam() {
    check_group("panels of few rows", vec![Part::new(530, 2048, GgmlDType::Q8_0, 3).with_bias()], 9);
    let kind = GgmlDType::Q8_0;
    let group = vec![Part::new(530, 2048, kind, 2).with_dropout(4), Part::new(34, 2048, kind, 3)];
    check_group("panels of two modules", group, 9);
    check_group("panels of many rows", vec![Part::new(16500, 64, kind, 4)], 6);
    check_group("blocks of depth", vec![Part::new(600, 256, GgmlDType::Q4K, 3)], 70);
}
