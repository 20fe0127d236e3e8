//! Training steps on a model of random weights: speed, memory, and where the time goes.

use crate::model::{Made, Shape, Sizes, make, quantization};
use crate::support::pack;
use crate::support::random_weights::random;
use crate::{Opened, say};
use candle_core::Result as DeviceResult;
use clap::Args;
use equipoise::data::{Batch, Sequence};
use equipoise::device::driver::{Matrix, MatrixProduct, Number};
use equipoise::device::{Device, Gpu};
use equipoise::error::{Error, Result};
use equipoise::models::Dimensions;
use equipoise::nn::QuantizationType;
use equipoise::objectives::{self, ObjectiveConfig, ObjectiveKind};
use equipoise::ops::{Compute, Pool};
use equipoise::rng::Rng;
use equipoise::train::backward::Engine;
use equipoise::train::{AdamW, GpuBudget, TrainingConfig};
use half::bf16;
use serde_json::{Value, json};
use std::sync::atomic::Ordering;
use std::time::Instant;

const LEARNING_RATE: f64 = 1e-4;
/// The gradient is scaled down to this norm.
const NORM: f64 = 1.0;
/// Steps that are looked into piece by piece.
const PROFILED: usize = 2;

/// What is measured.
#[derive(Args)]
pub struct Arguments {
    /// The model.
    #[arg(long, value_enum, default_value = "llama-8b")]
    shape: Shape,
    /// Sequences of a step, packed.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=4096))]
    rows: u32,
    /// Tokens of a sequence.
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u32).range(2..=131_072))]
    length: u32,
    /// How the frozen weights are held, as in a recipe: `q4_k`, `q8_0`, …; `none` is bf16.
    #[arg(long, default_value = "q4_k", value_parser = quantization)]
    quantization: QuantizationType,
    /// Rank of the adapter.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1024))]
    r: u32,
    /// Steps before the measurement.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1000))]
    warmup: u32,
    /// Steps that are measured.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=1000))]
    steps: u32,
    /// Of how many of the last layers the activations are kept; the others' are computed again.
    #[arg(long, default_value_t = 0)]
    kept_layers: usize,
    /// Whether layers' inputs wait in the CPU's memory.
    #[arg(long)]
    offload: bool,
}

impl Arguments {
    const fn tokens(&self) -> usize {
        self.rows as usize * self.length as usize
    }

    /// FLOP that a token needs, as tests/benches/README.md counts them: nothing that is computed twice counts twice.
    fn flops_per_token(&self, d: &Dimensions, sizes: Sizes) -> f64 {
        let (length, width) = (f64::from(self.length), (d.layers * d.heads * d.head_dim) as f64);
        let learnt = (length - 1.0) / length;
        4.0 * sizes.body as f64 + 4.0 * sizes.head as f64 * learnt + 6.0 * sizes.adapter as f64 + 6.0 * length * width
    }

    /// Random rows, packed; every token is learnt.
    fn batch(&self, vocabulary: usize, rng: &mut Rng) -> Batch {
        let rows: Vec<Sequence> = (0..self.rows)
            .map(|_| {
                let input_ids: Vec<u32> = (0..self.length).map(|_| rng.below(vocabulary as u64) as u32).collect();
                let labels = input_ids.iter().map(|&id| i64::from(id)).collect();
                Sequence { input_ids, labels }
            })
            .collect();
        pack(&rows)
    }
}

/// What steps are made with.
struct Trial<'a> {
    engine: Engine<'a>,
    adamw: AdamW,
    gpu: &'a Gpu,
    rng: Rng,
    arguments: &'a Arguments,
}

impl Trial<'_> {
    /// One optimizer step: its seconds, and its mean cross-entropy.
    fn step(&mut self) -> Result<(f64, f64)> {
        let batch = self.arguments.batch(self.engine.lm.dimensions.vocabulary, &mut self.rng);
        let begun = Instant::now();
        let sums = self.engine.sums(&[batch], |_| None)?;
        let norm = sums.gradients.norm()? / sums.denominator;
        if !(norm.is_finite() && sums.loss.sum.is_finite()) {
            return Err(Error::invalid(format!("a step gave a loss of {} and a norm of {norm}", sums.loss.sum)));
        }
        let factor = if norm > NORM { NORM / norm } else { 1.0 } / sums.denominator;
        self.adamw.update(self.engine.params, &sums.gradients, factor, LEARNING_RATE)?;
        self.gpu.synchronize()?;
        Ok((begun.elapsed().as_secs_f64(), sums.loss.cross_entropy / sums.loss.supervised as f64))
    }
}

/// Measures, and says all that README.md asks for.
pub fn run(opened: &Opened, arguments: &Arguments) -> Result<Value> {
    let gpu = &opened.gpu;
    let has_bf16 = gpu.facts()?.has_bf16();
    let peak = if has_bf16 { gemm_peak(opened)? } else { None };
    gpu.trim();
    gpu.reset_peaks();

    let (begun, d, r) = (Instant::now(), arguments.shape.dimensions(), arguments.r as usize);
    let device = Device::Gpu(gpu.clone());
    let Made { lm, params, sizes } = make(arguments.shape, arguments.quantization, r, &device)?;
    let weights = gpu.memory().reserved;
    say(&format!("a model of {} MiB in {:.1} s", weights >> 20, begun.elapsed().as_secs_f64()));

    let objective = objectives::build(&ObjectiveConfig { kind: ObjectiveKind::Bft, ..ObjectiveConfig::default() });
    let (pool, compute) = (Pool::default(), if has_bf16 { Compute::Bf16 } else { Compute::F32 });
    let engine = Engine {
        lm: &lm,
        params: &params,
        objective: &*objective,
        kept_layers: arguments.kept_layers.min(d.layers),
        offload: arguments.offload,
        compute,
        device: &device,
        pool: &pool,
        capacity: arguments.tokens(),
    };
    // The adapter is among the weights here.
    let frozen = (weights as u64).saturating_sub(4 * sizes.adapter as u64);
    let budget = GpuBudget { weights: frozen, adapter: (sizes.adapter, r), memory: gpu.facts()?.total };
    engine.reserve(&budget)?;
    let estimate = engine.gpu_estimate(&budget, engine.capacity).total;
    let adamw = AdamW::new(&TrainingConfig::default(), &params);
    let mut trial = Trial { engine, adamw, gpu, rng: Rng::new(1), arguments };
    let (seconds, loss) = measured(&mut trial)?;
    let memory = gpu.memory();
    let (parts, profiled) = profile(opened, &mut trial, 3 * r)?;

    let flops = arguments.flops_per_token(&d, sizes);
    let speed = |seconds: f64| arguments.tokens() as f64 / seconds;
    let median = middle(&seconds);
    Ok(json!({
        "shape": name(arguments.shape), "rows": arguments.rows, "length": arguments.length,
        "quantization": arguments.quantization, "r": arguments.r, "steps": arguments.steps,
        "kept_layers": engine.kept_layers, "offload": arguments.offload, "compute": compute.name(),
        "tokens_per_second": {
            "median": speed(median), "min": speed(seconds[seconds.len() - 1]), "max": speed(seconds[0]),
        },
        "step_seconds": median,
        "peak_bytes": memory.peak_reserved, "used_bytes": memory.peak, "weights_bytes": weights,
        "estimated_bytes": estimate,
        "gemm_peak_flops": peak, "model_flops_per_token": flops,
        "share_of_gemm_peak": peak.map(|peak| flops * speed(median) / peak),
        "parts": parts, "profiled_step_seconds": profiled, "loss": loss,
    }))
}

fn name(shape: Shape) -> String {
    clap::ValueEnum::to_possible_value(&shape).map_or_else(String::new, |value| value.get_name().to_owned())
}

/// Seconds of each step, ascending, and the loss of the first.
fn measured(trial: &mut Trial<'_>) -> Result<(Vec<f64>, f64)> {
    for step in 1..=trial.arguments.warmup {
        let (seconds, _) = trial.step()?;
        say(&format!("warm-up {step}: {seconds:.3} s"));
    }
    let mut all = Vec::new();
    for _ in 0..trial.arguments.steps {
        all.push(trial.step()?);
    }
    let loss = all[0].1;
    let mut seconds: Vec<f64> = all.into_iter().map(|(seconds, _)| seconds).collect();
    seconds.sort_by(f64::total_cmp);
    Ok((seconds, loss))
}

fn middle(ascending: &[f64]) -> f64 {
    let n = ascending.len();
    f64::midpoint(ascending[(n - 1) / 2], ascending[n / 2])
}

/// Seconds of a step by part, each piece of work waited for, so that all of them take longer than a step that is not looked
/// into; what is left is the CPU's. And the seconds of such a step.
fn profile(opened: &Opened, trial: &mut Trial<'_>, ranks: usize) -> Result<(Value, f64)> {
    opened.book.vocabulary.store(trial.engine.lm.dimensions.vocabulary, Ordering::Relaxed);
    opened.book.ranks.store(ranks, Ordering::Relaxed);
    opened.book.set_open(true);
    let mut whole = 0.0;
    for _ in 0..PROFILED {
        whole += trial.step()?.0 / PROFILED as f64;
    }
    opened.book.set_open(false);
    let (mut parts, mut rest) = (serde_json::Map::new(), whole);
    for (name, (seconds, pieces)) in opened.book.parts() {
        let (seconds, pieces) = (seconds / PROFILED as f64, pieces / PROFILED);
        say(&format!("{name}: {seconds:.4} s, {pieces} pieces of work"));
        parts.insert(name.into(), json!(seconds));
        rest -= seconds;
    }
    parts.insert("CPU".into(), json!(rest.max(0.0)));
    Ok((Value::Object(parts), whole))
}

/// FLOP a second of the largest square product in `bf16` that there is room for: the best of several. `None` without room.
fn gemm_peak(opened: &Opened) -> Result<Option<f64>> {
    let free = opened.gpu.facts()?.free as usize;
    let sizes = if opened.host { &[128][..] } else { &[8192, 4096, 2048] };
    let Some(&n) = sizes.iter().find(|&&n| 8 * n * n <= free) else { return Ok(None) };
    let peak = gemm_flops(&opened.gpu, n, if opened.host { 1 } else { 12 })?;
    say(&format!("{n} x {n} x {n} in bf16: {:.1} TFLOP/s", peak / 1e12));
    Ok(Some(peak))
}

fn gemm_flops(gpu: &Gpu, n: usize, rounds: usize) -> DeviceResult<f64> {
    /// Products between two waits.
    const TOGETHER: usize = 5;
    let numbers = |seed| random(n * n, seed, 1.0).into_iter().map(bf16::from_f32).collect::<Vec<_>>();
    let (a, b) = (gpu.upload_numbers(&numbers(1))?, gpu.upload_numbers(&numbers(2))?);
    let c = gpu.allocate(2 * n * n)?;
    let [a, b, c_at] = [&a, &b, &c].map(|memory| Matrix {
        address: memory.address(),
        rows: n,
        columns: n,
        stride: n,
        number: Number::Bf16,
    });
    let product = MatrixProduct { a, transpose_a: false, b, transpose_b: true, c: c_at, alpha: 1.0, beta: 0.0 };
    let mut best = f64::INFINITY;
    for round in 0..=rounds {
        let begun = Instant::now();
        for _ in 0..TOGETHER {
            // SAFETY: the matrices are those three buffers.
            #[expect(unsafe_code, reason = "matrices are addresses")]
            unsafe {
                gpu.multiply(&product)?;
            }
        }
        gpu.synchronize()?;
        if round > 0 {
            best = best.min(begun.elapsed().as_secs_f64() / TOGETHER as f64);
        }
    }
    Ok(2.0 * (n as f64).powi(3) / best)
}
