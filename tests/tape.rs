//! A whole step on the kernels against the same on candle's graph; in `bf16` against `f32`.

use crate::support::{
    ALL_LINEAR, ODD, TINY, Tiny, batch, eight_rows, engine, lora, objective_kinds, pack, pad, relative_distance, rows,
};
use equipoise::data::Batch;
use equipoise::models::Model;
use equipoise::nn::{LoraConfig, QuantizationType};
use equipoise::objectives::{self, ObjectiveConfig, ObjectiveKind};
use equipoise::ops::{Compute, Pool};
use equipoise::train::backward::{Engine, Loss, StepGradients, dropout_keys};

/// Ragged, padded on both sides, packed; in one piece and in several.
fn steps() -> Vec<(&'static str, Vec<Batch>)> {
    let rows = eight_rows();
    vec![
        ("ragged", vec![batch(&rows)]),
        ("padded", vec![pad(&rows[..3], 6, 40)]),
        ("packed", vec![pack(&rows)]),
        ("several", vec![batch(&rows[..3]), pack(&rows[3..7]), batch(&rows[7..])]),
    ]
}

/// Keys of dropout for each batch, where there is dropout.
fn keys(batch: &Batch, lora: &LoraConfig) -> Option<Vec<u64>> {
    let places: Vec<u64> = (0..batch.rows as u64).collect();
    (lora.lora_dropout > 0.0).then(|| dropout_keys(batch, 1, &places))
}

fn assert_close_losses(what: &str, a: &Loss, b: &Loss, limit: f64) {
    assert_eq!((a.supervised, a.tokens), (b.supervised, b.tokens), "{what}");
    for (a, b) in [(a.sum, b.sum), (a.cross_entropy, b.cross_entropy)] {
        assert!((a / b - 1.0).abs() < limit, "{what}: losses {a} and {b}");
    }
}

fn assert_close(what: &str, model: &Model, a: &StepGradients, b: &StepGradients, limit: f64) {
    assert_close_losses(what, &a.loss, &b.loss, limit);
    assert_eq!(a.gradients.len(), model.params.len(), "{what}");
    assert_eq!(a.gradients.len(), b.gradients.len(), "{what}");
    for (name, gradient) in &a.gradients {
        let distance = relative_distance(gradient, &b.gradients[name]);
        assert!(distance < limit, "{what}: {name} is {distance} apart");
    }
}

fn kernels_give_what_the_tape_gives(kind: QuantizationType, tiny: Tiny, lora: &LoraConfig) {
    let model = tiny.model(kind, lora);
    for config in objective_kinds() {
        let (objective, pool) = (objectives::build(&config), Pool::default());
        let engine = engine(&model, &*objective, &pool);
        for (name, batches) in steps() {
            let keys = |i: usize| keys(&batches[i], lora);
            let what = format!("{:?}, {kind:?}, {name}", config.kind);
            let (got, expected) = (engine.step(&batches, keys).unwrap(), engine.step_on_tape(&batches, keys).unwrap());
            assert_close(&what, &model, &got, &expected, 1e-4);
            assert_eq!(got.loss.top1, expected.loss.top1, "{what}");
            for batch in &batches {
                let (got, expected) = (engine.evaluate(batch).unwrap(), engine.evaluate_on_tape(batch).unwrap());
                assert_close_losses(&what, &got, &expected, 1e-5);
            }
        }
    }
}

#[test]
fn a_step_on_the_kernels_is_the_step_on_the_tape() {
    for r in [3, 8] {
        kernels_give_what_the_tape_gives(QuantizationType::Q8_0, TINY, &lora(r, &ALL_LINEAR));
    }
    kernels_give_what_the_tape_gives(QuantizationType::None, ODD, &lora(5, &["q_proj", "v_proj", "down_proj"]));
}

#[test]
fn a_step_on_the_kernels_is_the_step_on_the_tape_under_dropout() {
    let lora = LoraConfig { lora_dropout: 0.3, use_rslora: true, ..lora(3, &ALL_LINEAR) };
    kernels_give_what_the_tape_gives(QuantizationType::Q4_0, TINY, &lora);
    kernels_give_what_the_tape_gives(QuantizationType::None, ODD, &lora);
}

#[test]
fn a_step_in_bf16_is_near_the_step_in_f32() {
    for (kind, tiny) in [(QuantizationType::Q8_0, TINY), (QuantizationType::None, ODD)] {
        for lora_dropout in [0.0, 0.2] {
            let lora = LoraConfig { lora_dropout, ..lora(5, &ALL_LINEAR) };
            let model = tiny.model(kind, &lora);
            // The weights of the other objectives depend on the loss itself.
            let sft = objectives::build(&ObjectiveConfig { kind: ObjectiveKind::Sft, ..ObjectiveConfig::default() });
            let pool = Pool::default();
            let exact = engine(&model, &*sft, &pool);
            let rounded = Engine { compute: Compute::Bf16, ..exact };
            for (name, batches) in steps() {
                let keys = |i: usize| keys(&batches[i], &lora);
                let expected = exact.step(&batches, keys).unwrap();
                let what = format!("{name}, dropout {lora_dropout}");
                assert_close(&what, &model, &rounded.step(&batches, keys).unwrap(), &expected, 3e-2);
            }
        }
    }
}

/// Longer than the blocks of attention, and longer than a block of rows of a product.
#[test]
fn long_rows_are_as_right_as_short_ones() {
    let tiny = Tiny { layers: 1, ..TINY };
    let lora = lora(4, &ALL_LINEAR);
    let model = tiny.model(QuantizationType::Q8_0, &lora);
    let (bft, pool) = (objectives::build(&ObjectiveConfig::of(ObjectiveKind::Bft)), Pool::default());
    let engine = engine(&model, &*bft, &pool);
    let batches = [batch(&rows(&[250, 193, 65], tiny.vocabulary))];
    let (got, expected) = (engine.step(&batches, |_| None).unwrap(), engine.step_on_tape(&batches, |_| None).unwrap());
    assert_close("long rows", &model, &got, &expected, 1e-4);
}
