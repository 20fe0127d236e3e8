//! Products with frozen weights and their updates: three modules with one input, and one that adds to a stream.

use super::Judge;
use crate::support::random_weights::{random, random_weight};
use candle_core::quantized::GgmlDType;
use candle_core::{Device as Place, Tensor};
use equipoise::error::Result;
use equipoise::ops::cuda::{AdapterMemory, Cuda, GpuModule, GpuUpdate};
use equipoise::ops::{Dropout, FrozenVector, FrozenWeight, Group, Module, Pool, SavedInput, Update, UpdateGradient};
use equipoise::rng::key;

const SCALE: f32 = 2.0;
const PROBABILITY: f32 = 0.2;

/// Modules with one input. The last has a bias; the second has no update where there are several.
struct Case {
    dtype: GgmlDType,
    tokens: usize,
    inputs: usize,
    outputs: Vec<usize>,
    rank: usize,
    dropout: bool,
}

/// A case's weights on both sides, and its numbers.
struct Made {
    weights: Vec<[FrozenWeight; 2]>,
    bias: FrozenVector,
    names: Vec<[String; 2]>,
    /// `A` and `B` of each module.
    factors: Vec<[Vec<f32>; 2]>,
    keys: Vec<u64>,
    x: Vec<f32>,
    dy: Vec<f32>,
    onto: Vec<f32>,
}

pub fn compare(judge: &mut Judge<'_>) -> Result<()> {
    for case in judge.choose(small(), whole()) {
        compared(judge, &case)?;
    }
    Ok(())
}

fn small() -> Vec<Case> {
    use GgmlDType::{F32, Q4_0, Q4K, Q6K, Q8_0};
    let case = |dtype, inputs, outputs: &[usize], rank, dropout| Case {
        dtype,
        tokens: 21,
        inputs,
        outputs: outputs.into(),
        rank,
        dropout,
    };
    vec![
        case(Q4K, 256, &[96, 34, 50], 8, false),
        case(Q8_0, 96, &[70, 34, 20], 3, true),
        case(Q6K, 256, &[46], 5, false),
        case(Q4_0, 64, &[64], 4, true),
        case(F32, 50, &[30, 40], 4, false),
    ]
}

fn whole() -> Vec<Case> {
    use GgmlDType::{F16, Q4K, Q5_0, Q6K, Q8_0};
    let case = |dtype, tokens, inputs, outputs: &[usize], rank, dropout| Case {
        dtype,
        tokens,
        inputs,
        outputs: outputs.into(),
        rank,
        dropout,
    };
    vec![
        case(Q4K, 2047, 4096, &[4096, 1024, 1024], 16, false),
        case(Q8_0, 2047, 4096, &[4096, 1024, 1024], 16, true),
        case(Q4K, 513, 4096, &[14336, 14336], 16, false),
        case(Q6K, 513, 14336, &[4096], 16, false),
        case(Q5_0, 1023, 576, &[1536, 1538], 5, true),
        case(F16, 257, 4096, &[4098], 64, false),
    ]
}

impl Case {
    /// Whether module `i` has an update.
    fn updated(&self, i: usize) -> bool {
        i != 1 || self.outputs.len() == 1
    }

    fn width(&self) -> usize {
        self.outputs.iter().sum()
    }

    fn made(&self, judge: &Judge<'_>) -> Result<Made> {
        let (n, k) = (self.outputs.len(), self.inputs);
        let mut weights = Vec::new();
        for (i, &rows) in self.outputs.iter().enumerate() {
            let weight = random_weight(rows, k, self.dtype, 10 + i as u64)?;
            weights.push([weight.to_device(judge.device)?, weight]);
        }
        let last = self.outputs[n - 1];
        let bias = Tensor::from_vec(random(last, 20, 0.5), last, &Place::Cpu)?;
        let a = |i: usize| random(self.rank * k, 30 + i as u64, (3.0 / k as f32).sqrt());
        let b = |i: usize| random(self.outputs[i] * self.rank, 40 + i as u64, (3.0 / self.rank as f32).sqrt());
        Ok(Made {
            weights,
            bias: FrozenVector::new(&bias, judge.device)?,
            names: (0..n).map(|i| [format!("{i}.lora_A"), format!("{i}.lora_B")]).collect(),
            factors: (0..n).map(|i| [a(i), b(i)]).collect(),
            keys: (0..self.tokens as u64).map(|i| key(3, &[i])).collect(),
            x: random(self.tokens * k, 1, 1.0),
            dy: random(self.tokens * self.width(), 2, 1.0),
            onto: random(self.tokens * self.width(), 3, 1.0),
        })
    }
}

fn compared(judge: &mut Judge<'_>, case: &Case) -> Result<()> {
    let made = case.made(judge)?;
    let expected = on_cpu(case, &made)?;
    let drops = if case.dropout { ", dropout" } else { "" };
    let of = format!("{:?} {}x{}x{:?}{drops}", case.dtype, case.tokens, case.inputs, case.outputs);
    let names = ["linear", "linear backward: input", "linear backward: A", "linear backward: B", "linear onto"];
    judge.each(names, &of, &expected, |cuda| on_gpu(case, &made, cuda))
}

/// Outputs; gradients of the input, of all `A`, of all `B`; and the outputs added to others.
fn on_cpu(case: &Case, made: &Made) -> Result<[Vec<f32>; 5]> {
    let (pool, last) = (Pool::default(), case.outputs.len() - 1);
    let modules: Vec<Module<'_>> = (0..=last)
        .map(|i| Module {
            weight: &made.weights[i][1],
            bias: (i == last).then(|| made.bias.numbers()),
            update: case.updated(i).then(|| Update {
                a: &made.factors[i][0],
                b: &made.factors[i][1],
                rank: case.rank,
                scale: SCALE,
                dropout: case.dropout.then(|| Dropout {
                    probability: PROBABILITY,
                    row_keys: &made.keys,
                    layer_key: key(4, &[i as u64]),
                }),
            }),
        })
        .collect();
    let group = Group { modules: &modules, pool: &pool, capacity: case.tokens };
    let down = group.down(&made.x[..]);
    let saved = SavedInput { x: &made.x[..], down: &down };
    let (mut y, mut dx) = (vec![0f32; made.dy.len()], vec![0f32; made.x.len()]);
    group.forward(saved, &mut y)?;
    let mut sums: Vec<[Vec<f32>; 2]> =
        made.factors.iter().map(|[a, b]| [vec![0f32; a.len()], vec![0f32; b.len()]]).collect();
    let mut gradients: Vec<Option<UpdateGradient<'_>>> =
        sums.iter_mut().enumerate().map(|(i, [a, b])| case.updated(i).then_some(UpdateGradient { a, b })).collect();
    group.backward(saved, &made.dy, Some(&mut dx), &mut gradients)?;
    let all = |part: usize| sums.iter().flat_map(|pair| &pair[part]).copied().collect();
    let mut onto = made.onto.clone();
    group.forward_add(saved, &mut onto)?;
    Ok([y, dx, all(0), all(1), onto])
}

fn on_gpu(case: &Case, made: &Made, cuda: &Cuda) -> Result<[Vec<f32>; 5]> {
    let (k, last) = (case.inputs, case.outputs.len() - 1);
    let shapes = |part: usize| {
        made.names.iter().zip(&case.outputs).map(move |(names, &rows)| {
            (names[part].as_str(), if part == 0 { (case.rank, k) } else { (rows, case.rank) })
        })
    };
    let memory = AdapterMemory::new(&cuda.gpu, shapes(0).chain(shapes(1)))?;
    memory.set(|name| {
        let pairs = made.names.iter().flatten().zip(made.factors.iter().flatten());
        let found = { pairs }.find(|(each, _)| *each == name);
        found.map(|(_, numbers)| numbers.clone()).ok_or_else(|| candle_core::Error::Msg(format!("no {name}")))
    })?;
    memory.begin_step()?;
    let (keys, operands) = (cuda.dropout_keys(&made.keys)?, memory.operands(cuda.compute)?);
    let modules: Vec<GpuModule<'_>> = (0..=last)
        .map(|i| GpuModule {
            weight: &made.weights[i][0],
            bias: (i == last).then_some(&made.bias),
            update: case.updated(i).then(|| GpuUpdate {
                names: made.names[i].each_ref().map(String::as_str),
                rank: case.rank,
                scale: SCALE,
                dropout: case.dropout.then(|| (&keys, PROBABILITY, key(4, &[i as u64]))),
            }),
        })
        .collect();
    let (x, dy) = (cuda.upload(&made.x, k)?, cuda.upload(&made.dy, case.width())?);
    let down = cuda.down(&modules, &operands, &x)?;
    let y = cuda.linear(&modules, &operands, &x, &down)?;
    let dx = cuda.linear_backward(&modules, &operands, (&x, &down), &dy, true)?;
    let gradients = memory.gradients()?;
    let all = |part: usize| made.names.iter().flat_map(|names| &gradients[&names[part]]).copied().collect();
    let onto = match modules[..] {
        [module] => {
            let onto = cuda.upload(&made.onto, case.width())?;
            cuda.download(&cuda.linear_onto(module, &operands, (&x, &down), &onto)?)?
        }
        // Several modules never add to a stream; the sum is made here.
        _ => cuda.download(&y)?.iter().zip(&made.onto).map(|(y, onto)| y + onto).collect(),
    };
    let dx = dx.map_or_else(|| Ok(Vec::new()), |dx| cuda.download(&dx))?;
    Ok([cuda.download(&y)?, dx, all(0), all(1), onto])
}
