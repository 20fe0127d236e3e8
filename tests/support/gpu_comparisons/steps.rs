//! Whole steps of tiny models: losses, and the gradients of all adapter tensors.

use super::{Extent, F32, Judge, worse};
use crate::support::{
    ALL_LINEAR, ODD, TINY, Tiny, WIDE, batch, eight_rows, engine, lora, objective_kinds, pack, quantization_types,
    relative_distance, rows,
};
use candle_core::Tensor;
use equipoise::data::Batch;
use equipoise::device::Device;
use equipoise::error::Result;
use equipoise::models::Model;
use equipoise::nn::{LoraConfig, QuantizationType};
use equipoise::objectives::{self, ObjectiveConfig, ObjectiveKind};
use equipoise::ops::{Compute, Pool};
use equipoise::train::backward::{Engine, StepGradients, dropout_keys};

/// What `bf16` costs a step depends on the model: products, norms and the residual stream round one after the other, and objectives
/// weigh tokens by probabilities that were rounded. So the CPU's own step in `bf16` is the measure, of the same rows: the GPU may
/// be so many times as far from the step in `f32`, for losses, the whole gradient, and its worst tensor ...
const TIMES_THE_CPU: f64 = 2.0;
/// ... but need not be closer than this, where the CPU happens to be ...
const FLOOR: [f64; 3] = [5e-3, 2e-2, 2.5e-2];
/// ... and never farther than this. The CPU's residual stream is `f32`, the GPU's `bf16`: the GPU's kernels, compiled for the CPU,
/// were 1.0 to 1.6 times as far as the CPU in gradients, and 4.0e-2 off at most.
const MOST: [f64; 3] = [1e-2, 5e-2, 6e-2];

/// Of an objective with a reference: its gradient is the difference of two that are rounded, and what was rounded is then a larger
/// part of it. It multiplies the bounds above. On an H200, with seven times the default factor, the gradient was 4.0e-2 off
/// and its worst tensor 7.1e-2, where the CPU was 2.4e-2 and 3.4e-2 off; in `f32` both agree to 4e-6.
const WITH_REFERENCE: f64 = 1.5;

/// The same model on the CPU and on a GPU.
pub struct Both {
    pub cpu: Model,
    pub gpu: Model,
    pub device: Device,
}

impl Both {
    pub fn new(kind: QuantizationType, tiny: Tiny, lora: &LoraConfig, device: &Device) -> Self {
        Self { cpu: tiny.model(kind, lora), gpu: tiny.model_on(kind, lora, device), device: device.clone() }
    }

    fn step(
        &self,
        (device, compute): (&Device, Compute),
        config: &ObjectiveConfig,
        batches: &[Batch],
        dropout: f64,
    ) -> Result<StepGradients> {
        let (objective, pool) = (objectives::build(config), Pool::default());
        let keys = |i: usize| {
            let places: Vec<u64> = (0..batches[i].rows as u64).collect();
            (dropout > 0.0).then(|| dropout_keys(&batches[i], 1, &places))
        };
        let model = if device.is_cpu() { &self.cpu } else { &self.gpu };
        Engine { device, compute, ..engine(model, &*objective, &pool) }.step(batches, keys)
    }
}

fn sft() -> ObjectiveConfig {
    ObjectiveConfig { kind: ObjectiveKind::Sft, ..ObjectiveConfig::default() }
}

/// Ragged rows, one of which has nothing supervised; packed; in one piece and in several.
fn pieces() -> [(&'static str, Vec<Batch>); 2] {
    let rows = eight_rows();
    [("ragged", vec![batch(&rows)]), ("packed", vec![batch(&rows[..3]), pack(&rows[3..7]), batch(&rows[7..])])]
}

pub fn compare(judge: &mut Judge<'_>) -> Result<()> {
    of_each_objective(judge)?;
    of_each_quantization_type(judge)?;
    under_dropout(judge)?;
    of_long_rows(judge)
}

fn of_each_objective(judge: &mut Judge<'_>) -> Result<()> {
    let both = Both::new(QuantizationType::Q8_0, TINY, &lora(3, &ALL_LINEAR), judge.device);
    for config in objective_kinds() {
        let name = match config.kind {
            ObjectiveKind::Bft => format!("bft {:?}", config.token_weighting),
            kind => kind.name().to_owned(),
        };
        let pieces = pieces();
        // The ragged batch, which is slow where there is no GPU, once.
        let pieces = if judge.extent == Extent::Small && (config.kind != ObjectiveKind::Bft || config.normalize_weights)
        {
            &pieces[1..]
        } else {
            &pieces
        };
        for (kind, batches) in pieces {
            compared(judge, &format!("step {name}, {kind}"), &both, &config, batches, 0.0)?;
        }
    }
    Ok(())
}

fn of_each_quantization_type(judge: &mut Judge<'_>) -> Result<()> {
    for (kind, tiny, dtype) in quantization_types() {
        let both = Both::new(kind, tiny, &lora(4, &ALL_LINEAR), judge.device);
        let batches = [batch(&rows(&[13, 21], tiny.vocabulary))];
        compared(judge, &format!("step in {dtype:?}"), &both, &sft(), &batches, 0.0)?;
    }
    Ok(())
}

fn under_dropout(judge: &mut Judge<'_>) -> Result<()> {
    let lora = LoraConfig { lora_dropout: 0.3, use_rslora: true, ..lora(5, &ALL_LINEAR) };
    for (which, size, tiny) in [(0, "even", TINY), (1, "odd", ODD)] {
        let both = Both::new(QuantizationType::None, tiny, &lora, judge.device);
        let (kind, batches) = &pieces()[which];
        compared(judge, &format!("step under dropout, {size}, {kind}"), &both, &sft(), batches, 0.3)?;
    }
    Ok(())
}

/// Longer than the tiles of attention; some modules have no adapter; heads of odd widths. On a GPU also heads as wide as real
/// ones.
fn of_long_rows(judge: &mut Judge<'_>) -> Result<()> {
    const HEADS_64: Tiny = Tiny { hidden: 576, intermediate: 1536, heads: 9, kv_heads: 3, layers: 2, vocabulary: 4099 };
    const HEADS_128: Tiny =
        Tiny { hidden: 1024, intermediate: 3584, heads: 8, kv_heads: 2, layers: 2, vocabulary: 8193 };
    let lora = lora(4, &["q_proj", "v_proj", "down_proj"]);
    let (tiny, odd) = (Tiny { layers: 1, ..TINY }, Tiny { layers: 1, ..ODD });
    for (size, tiny) in [("tiny", tiny), ("odd", odd), ("wide", WIDE)] {
        let both = Both::new(QuantizationType::None, tiny, &lora, judge.device);
        let batches = [pack(&rows(&[130, 77, 9], tiny.vocabulary)), batch(&rows(&[100], tiny.vocabulary))];
        compared(judge, &format!("step on long rows, {size}"), &both, &sft(), &batches, 0.0)?;
    }
    if judge.extent == Extent::Small {
        return Ok(());
    }
    for (size, tiny, kind) in
        [("heads of 64", HEADS_64, QuantizationType::Q8_0), ("heads of 128", HEADS_128, QuantizationType::Q4K)]
    {
        let both = Both::new(kind, tiny, &crate::support::lora(16, &ALL_LINEAR), judge.device);
        let batches = [pack(&rows(&[1023, 511, 130], tiny.vocabulary)), batch(&rows(&[257, 300], tiny.vocabulary))];
        compared(judge, &format!("step on long rows, {size}"), &both, &sft(), &batches, 0.0)?;
    }
    Ok(())
}

fn compared(
    judge: &mut Judge<'_>,
    name: &str,
    both: &Both,
    config: &ObjectiveConfig,
    batches: &[Batch],
    dropout: f64,
) -> Result<()> {
    let types = judge.types()?;
    let step = |device, compute| both.step((device, compute), config, batches, dropout);
    let expected = step(&Device::Cpu, Compute::F32)?;
    let rounded = types.contains(&Compute::Bf16).then(|| step(&Device::Cpu, Compute::Bf16)).transpose()?;
    for compute in types {
        judge.begin(name, compute);
        let got = match step(&both.device, compute) {
            Ok(got) => got,
            Err(error) => {
                judge.refused(name, compute, error)?;
                continue;
            }
        };
        let rounded = rounded.as_ref().filter(|_| compute == Compute::Bf16);
        let errors = distances(&got, &expected, compute);
        let of_cpu = rounded.map(|step| distances(step, &expected, compute));
        for (i, what) in ["loss", "gradient", "worst tensor"].into_iter().enumerate() {
            let cpu_error = of_cpu.map(|errors| errors[i]);
            let wider = if objectives::build(config).needs().reference { WITH_REFERENCE } else { 1.0 };
            let of_bf16 = |error: f64| wider * (TIMES_THE_CPU * error).max(FLOOR[i]).min(MOST[i]);
            let tolerance = cpu_error.map_or(F32, of_bf16);
            judge.tell_beside(&format!("{name}: {what}"), compute, errors[i], tolerance, cpu_error);
        }
    }
    Ok(())
}

/// How far apart losses are, the whole gradient, and its worst tensor.
fn distances(got: &StepGradients, expected: &StepGradients, compute: Compute) -> [f64; 3] {
    [loss_distance(got, expected, compute), whole(got, expected), worst(got, expected)]
}

/// How far the losses are apart, as a share; infinite where other tokens are learnt, and in `f32` where others come first.
fn loss_distance(got: &StepGradients, expected: &StepGradients, compute: Compute) -> f64 {
    let (got, expected) = (&got.loss, &expected.loss);
    if got.supervised != expected.supervised || compute == Compute::F32 && got.top1 != expected.top1 {
        return f64::INFINITY;
    }
    let apart = |got: f64, expected: f64| (got / expected - 1.0).abs();
    worse(apart(got.sum, expected.sum), apart(got.cross_entropy, expected.cross_entropy))
}

/// The distance of all tensors as one.
fn whole(got: &StepGradients, expected: &StepGradients) -> f64 {
    let all = |step: &StepGradients| -> candle_core::Result<Tensor> {
        let flat = step.gradients.values().map(Tensor::flatten_all).collect::<candle_core::Result<Vec<_>>>()?;
        Tensor::cat(&flat, 0)
    };
    match (all(got), all(expected)) {
        (Ok(got), Ok(expected)) if got.dims() == expected.dims() => relative_distance(&got, &expected),
        _ => f64::INFINITY,
    }
}

/// The distance of the tensor that is farthest off.
fn worst(got: &StepGradients, expected: &StepGradients) -> f64 {
    let distances = expected
        .gradients
        .iter()
        .map(|(name, expected)| got.gradients.get(name).map_or(f64::INFINITY, |got| relative_distance(got, expected)));
    distances.fold(0.0, worse)
}
