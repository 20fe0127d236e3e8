//! Each operation of a training step by itself, in the sizes of SmolLM2-135M: `cargo bench`, or `cargo bench -- attention`.
//!
//! `throughput` counts multiplications and additions of matrix products (or numbers, where there are none), so that a
//! product's line reads in FLOP a second.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use equipoise::ops::attention::{Attention, AttentionOutput, Heads, attention, attention_backward};
use equipoise::ops::{
    Activation, AttentionShape, Element, FrozenWeight, Group, HeadRequest, Module, Pool, RopeTable, SavedInput,
    Sequence, Update, UpdateGradient, gate, gate_backward, linear_cross_entropy, rms_norm, rms_norm_backward,
};
use equipoise::rng::Rng;
use half::bf16;

/// Tokens of a batch: 4 × 256.
const TOKENS: usize = 1024;
const HIDDEN: usize = 576;
const INTERMEDIATE: usize = 1536;
const RANK: usize = 8;
const SHAPE: AttentionShape =
    AttentionShape { heads: 9, kv_heads: 3, head_dim: 64, scale: 0.125, softcap: None, window: None };

fn random<E: Element>(count: usize, seed: u64) -> Vec<E> {
    let mut rng = Rng::new(seed);
    (0..count).map(|_| E::from_f32((rng.uniform() - 0.5) as f32)).collect()
}

fn weight(outputs: usize, inputs: usize, dtype: GgmlDType) -> FrozenWeight {
    let dense = Tensor::from_vec(random::<f32>(outputs * inputs, 3), (outputs, inputs), &Device::Cpu).expect("a shape");
    FrozenWeight::quantized(&QTensor::quantize(&dense, dtype).expect("whole blocks")).expect("a matrix")
}

/// Runs within the thread pool, as a step does.
fn bench(c: &mut Criterion, name: &str, amount: usize, mut f: impl FnMut() + Send) {
    let mut group = c.benchmark_group("ops");
    group.sample_size(20).throughput(Throughput::Elements(amount as u64));
    group.bench_function(name, |b| rayon::scope(|_| b.iter(&mut f)));
    group.finish();
}

fn linear<E: Element>(c: &mut Criterion, name: &str, inputs: usize, outputs: &[usize]) {
    let pool = Pool::default();
    let weights: Vec<_> = outputs.iter().map(|&n| weight(n, inputs, GgmlDType::Q4_1)).collect();
    let a = random::<f32>(RANK * inputs, 5);
    let b: Vec<Vec<f32>> = outputs.iter().map(|&n| random(RANK * n, 6)).collect();
    let modules: Vec<_> = weights
        .iter()
        .zip(&b)
        .map(|(weight, b)| Module {
            weight,
            bias: None,
            update: Some(Update { a: &a, b, rank: RANK, scale: 2.0, dropout: None }),
        })
        .collect();
    let group = Group { modules: &modules, pool: &pool, capacity: TOKENS };
    let (x, dy) = (random::<E>(TOKENS * inputs, 7), random::<E>(TOKENS * group.outputs(), 8));
    let mut y = vec![E::default(); dy.len()];
    let mut dx = vec![0f32; x.len()];
    let mut gradients: Vec<[Vec<f32>; 2]> =
        outputs.iter().map(|&n| [vec![0f32; RANK * inputs], vec![0f32; RANK * n]]).collect();
    let flop = 2 * TOKENS * inputs * group.outputs();
    bench(c, &format!("{name} forward"), flop, || {
        let down = group.down(&x);
        group.forward(SavedInput { x: &x, down: &down }, &mut y).expect("on the CPU");
    });
    let down = group.down(&x);
    bench(c, &format!("{name} backward"), flop, || {
        let mut gradients: Vec<_> = gradients.iter_mut().map(|[a, b]| Some(UpdateGradient { a, b })).collect();
        group.backward(SavedInput { x: &x, down: &down }, &dy, Some(&mut dx), &mut gradients).expect("on the CPU");
    });
}

fn elementwise<E: Element>(c: &mut Criterion, kind: &str) {
    let (gate_up, mut inner) = (random::<E>(TOKENS * 2 * INTERMEDIATE, 1), vec![E::default(); TOKENS * INTERMEDIATE]);
    let (d_inner, mut d_gate_up) = (random::<f32>(TOKENS * INTERMEDIATE, 2), gate_up.clone());
    bench(c, &format!("{kind} swiglu forward"), inner.len(), || {
        gate(Activation::Silu, &gate_up, INTERMEDIATE, &mut inner);
    });
    bench(c, &format!("{kind} swiglu backward"), d_inner.len(), || {
        gate_backward(Activation::Silu, &gate_up, INTERMEDIATE, &d_inner, &mut d_gate_up);
    });
    let (x, norm, dy) =
        (random::<f32>(TOKENS * HIDDEN, 3), random::<f32>(HIDDEN, 4), random::<f32>(TOKENS * HIDDEN, 5));
    let (mut y, mut dx) = (vec![E::default(); x.len()], x.clone());
    bench(c, &format!("{kind} rms_norm forward"), x.len(), || rms_norm(&x, &norm, 1e-5, &mut y));
    bench(c, &format!("{kind} rms_norm backward"), x.len(), || rms_norm_backward(&x, &norm, 1e-5, &dy, &mut dx));
    let rope = RopeTable::new(&(0..TOKENS as u32).collect::<Vec<_>>(), &[0.01; 32], 1.0);
    let mut qkv = random::<E>(TOKENS * 960, 6);
    bench(c, &format!("{kind} rope"), TOKENS * 768, || rope.rotate(&mut qkv, SHAPE));
}

/// Of rows of so many tokens, `TOKENS` or one row; `throughput` is of the scores that causality and the window leave.
fn attend<E: Element>(c: &mut Criterion, kind: &str, length: usize, window: Option<usize>) {
    let pool = Pool::default();
    let AttentionShape { heads, kv_heads, head_dim, .. } = SHAPE;
    let stride = (heads + 2 * kv_heads) * head_dim;
    let tokens = TOKENS.max(length);
    let qkv = random::<E>(tokens * stride, 1);
    let sequences: Vec<_> = (0..tokens / length)
        .map(|i| i * length..(i + 1) * length)
        .map(|rows| Sequence { queries: rows.clone(), keys: rows })
        .collect();
    let from = |column: usize| Heads { data: &qkv[column * head_dim..], stride };
    let (q, k, v) = (from(0), from(heads), from(heads + kv_heads));
    let of = Attention { shape: AttentionShape { window, ..SHAPE }, q, k, v, sequences: &sequences, capacity: 0 };
    let (mut out, mut log_sums) = (random::<E>(tokens * heads * head_dim, 2), vec![0f32; tokens * heads]);
    let seen: usize = (1..=length).map(|position| window.map_or(position, |window| position.min(window))).sum();
    let flop = 4 * tokens / length * seen * heads * head_dim;
    let length = window.map_or_else(|| format!("t={length}"), |window| format!("t={length} window={window}"));
    bench(c, &format!("{kind} attention forward {length}"), flop, || attention(&of, &mut out, &mut log_sums, &pool));
    let gradient = random::<E>(out.len(), 3);
    let mut d_qkv = qkv.clone();
    let output = AttentionOutput { out: &out, log_sums: &log_sums, gradient: &gradient };
    bench(c, &format!("{kind} attention backward {length}"), flop / 2 * 5, || {
        attention_backward(&of, output, None, &mut d_qkv, &pool);
    });
}

fn head<E: Element>(c: &mut Criterion, kind: &str, vocabulary: usize, width: usize) {
    let pool = Pool::default();
    let weight = weight(vocabulary, width, GgmlDType::Q8_0);
    let hidden = random::<E>(TOKENS * width, 1);
    let targets: Vec<u32> = (0..TOKENS as u32).collect();
    bench(c, &format!("{kind} linear_cross_entropy v={vocabulary}"), 4 * TOKENS * width * vocabulary, || {
        linear_cross_entropy(&hidden, &weight, &targets, None, HeadRequest { gradient: true, top_k: None }, (&pool, 0))
            .expect("on the CPU");
    });
}

fn all_of<E: Element>(c: &mut Criterion, kind: &str) {
    linear::<E>(c, &format!("{kind} linear qkv"), HIDDEN, &[576, 192, 192]);
    linear::<E>(c, &format!("{kind} linear o"), HIDDEN, &[HIDDEN]);
    linear::<E>(c, &format!("{kind} linear gate_up"), HIDDEN, &[INTERMEDIATE; 2]);
    linear::<E>(c, &format!("{kind} linear down"), INTERMEDIATE, &[HIDDEN]);
    elementwise::<E>(c, kind);
    for (length, window) in [(256, None), (1024, None), (4096, None), (4096, Some(1024)), (4096, Some(512))] {
        attend::<E>(c, kind, length, window);
    }
    head::<E>(c, kind, 49_152, HIDDEN);
    // Gemma 3 270M's.
    head::<E>(c, kind, 262_144, 640);
}

fn ops(c: &mut Criterion) {
    all_of::<bf16>(c, "bf16");
    all_of::<f32>(c, "f32");
}

criterion_group!(benches, ops);
criterion_main!(benches);
