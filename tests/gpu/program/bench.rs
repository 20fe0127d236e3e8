//! Training steps on a model of random weights: speed, memory, and where the time goes.

use crate::model::{Made, Shape, Sizes, make, quantization};
use crate::profile::{self, Peaks};
use crate::support::pack;
use crate::support::watch::Line;
use crate::{Opened, say};
use clap::Args;
use equipoise::data::{Batch, Sequence};
use equipoise::device::{Device, Gpu};
use equipoise::error::{Error, Result};
use equipoise::models::Dimensions;
use equipoise::nn::QuantizationType;
use equipoise::objectives::{self, ObjectiveConfig, ObjectiveKind};
use equipoise::ops::{Compute, Pool};
use equipoise::rng::Rng;
use equipoise::train::backward::Engine;
use equipoise::train::{AdamW, GpuBudget, MemoryEstimate, TrainingConfig};
use serde_json::{Value, json};
use std::time::Instant;

const LEARNING_RATE: f64 = 1e-4;
/// The gradient is scaled down to this norm.
const NORM: f64 = 1.0;
/// Steps that are looked into piece by piece.
const PROFILED: usize = 2;

/// Of how many layers the activations are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeptLayers {
    /// As many as a run with `gradient_checkpointing: auto` keeps.
    Auto,
    Number(usize),
}

fn kept_layers(text: &str) -> Result<KeptLayers, String> {
    if text == "auto" {
        return Ok(KeptLayers::Auto);
    }
    text.parse().map(KeptLayers::Number).map_err(|_| "expected a number or `auto`".to_owned())
}

/// What is measured.
#[derive(Args)]
pub struct Arguments {
    /// The model.
    #[arg(long, value_enum, default_value = "llama-8b")]
    pub shape: Shape,
    /// Sequences of a step, packed.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub rows: u32,
    /// Tokens of a sequence.
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u32).range(2..=131_072))]
    pub length: u32,
    /// How the frozen weights are held, as in a recipe: `q4_k`, `q8_0`, …; `none` is bf16.
    #[arg(long, default_value = "q4_k", value_parser = quantization)]
    pub quantization: QuantizationType,
    /// Rank of the adapter.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub r: u32,
    /// Steps before the measurement.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1000))]
    warmup: u32,
    /// Steps that are measured.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=1000))]
    steps: u32,
    /// Of how many of the last layers the activations are kept, or `auto`; the others' are computed again.
    #[arg(long, default_value = "0", value_parser = kept_layers)]
    kept_layers: KeptLayers,
    /// Under `auto`, what a step may take, as `training.max_memory_mb`.
    #[arg(long)]
    max_memory_mb: Option<u64>,
    /// Leave the two profiled steps out.
    #[arg(long)]
    no_profile: bool,
    /// Leave out what the GPU does at most: the largest product, and a copy.
    #[arg(long)]
    no_peaks: bool,
    /// Whether layers' inputs wait in the CPU's memory.
    #[arg(long)]
    offload: bool,
}

impl Arguments {
    pub const fn tokens(&self) -> usize {
        self.rows as usize * self.length as usize
    }

    /// FLOP that a token needs, as tests/benches/README.md counts them: nothing that is computed twice counts twice.
    pub fn flops_per_token(&self, d: &Dimensions, sizes: Sizes) -> f64 {
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
                Sequence::new(input_ids, labels)
            })
            .collect();
        pack(&rows)
    }
}

/// What steps are made with.
pub struct Trial<'a> {
    pub engine: Engine<'a>,
    pub sizes: Sizes,
    adamw: AdamW,
    gpu: &'a Gpu,
    rng: Rng,
    arguments: &'a Arguments,
    /// Bytes that the weights and the adapter's values take.
    weights: usize,
    budget: GpuBudget,
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

    /// As many layers as [`KeptLayers`] says, and what a run would keep within four fifths of the memory.
    fn choose_kept_layers(&mut self) {
        let layers = self.engine.lm.dimensions.layers;
        self.engine.kept_layers = match self.arguments.kept_layers {
            KeptLayers::Number(number) => number.min(layers),
            KeptLayers::Auto => {
                let limit = self.arguments.max_memory_mb.map_or(self.budget.memory / 5 * 4, |mb| mb << 20);
                MemoryEstimate::most_within(layers, limit, |kept| self.estimate(kept))
            }
        };
    }

    fn estimate(&self, kept_layers: usize) -> MemoryEstimate {
        Engine { kept_layers, ..self.engine }.gpu_estimate(&self.budget, self.engine.capacity)
    }

    /// Seconds of each step, ascending, and the loss of the first.
    fn measured(&mut self) -> Result<(Vec<f64>, f64)> {
        for step in 1..=self.arguments.warmup {
            let (seconds, _) = self.step()?;
            say(&format!("warm-up {step}: {seconds:.3} s"));
        }
        let mut all = Vec::new();
        for _ in 0..self.arguments.steps {
            all.push(self.step()?);
        }
        let loss = all[0].1;
        let mut seconds: Vec<f64> = all.into_iter().map(|(seconds, _)| seconds).collect();
        seconds.sort_by(f64::total_cmp);
        Ok((seconds, loss))
    }

    /// The pieces of work of a step, and the seconds of one, as the mean of some that are looked into.
    pub fn profiled(&mut self, opened: &Opened, steps: usize) -> Result<(Vec<Line>, f64)> {
        let (vocabulary, ranks) = (self.engine.lm.dimensions.vocabulary, 3 * self.arguments.r as usize);
        let (lines, seconds) =
            profile::of(opened, (vocabulary, ranks), steps, || self.step().map(|(seconds, _)| seconds))?;
        Ok((lines, seconds))
    }
}

/// Makes the model on the GPU, and calls `f` with all that a step needs.
pub fn with_trial<R>(opened: &Opened, arguments: &Arguments, f: impl FnOnce(&mut Trial<'_>) -> Result<R>) -> Result<R> {
    let gpu = &opened.gpu;
    let (begun, d, r) = (Instant::now(), arguments.shape.dimensions(), arguments.r as usize);
    let device = Device::Gpu(gpu.clone());
    let Made { lm, params, sizes } = make(arguments.shape, arguments.quantization, r, &device)?;
    let memory = gpu.memory();
    let weights = memory.reserved - memory.workspace;
    say(&format!("a model of {} MiB in {:.1} s", weights >> 20, begun.elapsed().as_secs_f64()));

    let objective = objectives::build(&ObjectiveConfig { kind: ObjectiveKind::Bft, ..ObjectiveConfig::default() });
    let pool = Pool::default();
    let facts = gpu.facts()?;
    let engine = Engine {
        lm: &lm,
        params: &params,
        objective: &*objective,
        kept_layers: 0,
        offload: arguments.offload,
        compute: if facts.has_bf16() { Compute::Bf16 } else { Compute::F32 },
        device: &device,
        pool: &pool,
        capacity: arguments.tokens(),
    };
    // The adapter is among the weights here.
    let frozen = (weights as u64).saturating_sub(4 * sizes.adapter as u64);
    let budget =
        GpuBudget { weights: frozen, adapter: (sizes.adapter, r), memory: facts.free + memory.reserved as u64 };
    let adamw = AdamW::new(&TrainingConfig::default(), &params);
    let mut trial = Trial { engine, sizes, adamw, gpu, rng: Rng::new(1), arguments, weights, budget };
    trial.choose_kept_layers();
    say(&format!("activations of {} of {} layers are kept", trial.engine.kept_layers, d.layers));
    trial.engine.reserve(&budget)?;
    f(&mut trial)
}

/// Measures, and says all that README.md asks for.
pub fn run(opened: &Opened, arguments: &Arguments) -> Result<Value> {
    let peaks = if arguments.no_peaks { Peaks::default() } else { Peaks::measure(opened)? };
    opened.gpu.trim();
    opened.gpu.reset_peaks();
    with_trial(opened, arguments, |trial| {
        let (seconds, loss) = trial.measured()?;
        let memory = opened.gpu.memory();
        let profile = if arguments.no_profile { None } else { Some(trial.profiled(opened, PROFILED)?) };
        let (engine, sizes) = (&trial.engine, trial.sizes);
        let d = &engine.lm.dimensions;
        let flops = arguments.flops_per_token(d, sizes);
        let speed = |seconds: f64| arguments.tokens() as f64 / seconds;
        let median = middle(&seconds);
        let mut result = json!({
            "shape": name(arguments.shape), "rows": arguments.rows, "length": arguments.length,
            "quantization": arguments.quantization, "r": arguments.r, "steps": arguments.steps,
            "kept_layers": engine.kept_layers, "layers": d.layers, "offload": arguments.offload,
            "compute": engine.compute.name(),
            "tokens_per_second": {
                "median": speed(median), "min": speed(seconds[seconds.len() - 1]), "max": speed(seconds[0]),
            },
            "step_seconds": median,
            "peak_bytes": memory.peak_reserved, "used_bytes": memory.peak, "weights_bytes": trial.weights,
            "estimated_bytes": trial.estimate(engine.kept_layers).total,
            "gemm_peak_flops": peaks.flop_per_second,
            "copy_peak_bytes_per_second": peaks.bytes_per_second,
            "model_flops_per_token": flops,
            "share_of_gemm_peak": peaks.flop_per_second.map(|peak| flops * speed(median) / peak),
            "loss": loss,
        });
        if let Some((lines, seconds)) = profile {
            result["parts"] = profile::parts(&lines, seconds);
            result["profiled_step_seconds"] = json!(seconds);
            result["profile"] = json!({"step_seconds": seconds, "pieces": profile::pieces(&lines)});
        }
        Ok(result)
    })
}

pub fn name(shape: Shape) -> String {
    clap::ValueEnum::to_possible_value(&shape).map_or_else(String::new, |value| value.get_name().to_owned())
}

fn middle(ascending: &[f64]) -> f64 {
    let n = ascending.len();
    f64::midpoint(ascending[(n - 1) / 2], ascending[n / 2])
}
