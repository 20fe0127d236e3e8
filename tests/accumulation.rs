//! A step does not depend on how it is cut, on padding, on packing, or on whether activations are computed again.

use crate::support::{
    ALL_LINEAR, TINY, Tiny, assert_rehearsed, batch, eight_rows, engine, lora, objective_kinds, pack, pad,
    relative_distance, rows,
};
use equipoise::data::{Arrangement, Batch, Plan, Rows, Sequence};
use equipoise::models::Model;
use equipoise::nn::{LoraConfig, QuantizationType};
use equipoise::objectives::{self, ObjectiveConfig, ObjectiveKind};
use equipoise::ops::{Compute, Pool};
use equipoise::train::backward::{Engine, StepGradients, dropout_keys};

fn step(model: &Model, config: &ObjectiveConfig, batches: &[Batch]) -> StepGradients {
    let objective = objectives::build(config);
    let pool = Pool::default();
    let engine = engine(model, &*objective, &pool);
    engine.step(batches, |_| None).unwrap()
}

fn assert_same(what: &str, a: &StepGradients, b: &StepGradients) {
    let (loss_a, loss_b) = (a.loss.sum / a.denominator, b.loss.sum / b.denominator);
    assert!((loss_a / loss_b - 1.0).abs() < 1e-5, "{what}: losses {loss_a} and {loss_b}");
    assert_eq!(a.gradients.len(), b.gradients.len());
    for (name, gradient) in &a.gradients {
        let (a, b) = ((gradient / a.denominator).unwrap(), (&b.gradients[name] / b.denominator).unwrap());
        let distance = relative_distance(&a, &b);
        assert!(distance < 1e-5, "{what}: {name} is {distance} apart");
    }
}

fn assert_same_bits(a: &StepGradients, b: &StepGradients) {
    assert_eq!(a.loss.sum.to_bits(), b.loss.sum.to_bits());
    assert_eq!(a.gradients.len(), b.gradients.len());
    for (name, gradient) in &a.gradients {
        let bits = |t: &candle_core::Tensor| -> Vec<u32> {
            t.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|x| x.to_bits()).collect()
        };
        assert_eq!(bits(gradient), bits(&b.gradients[name]), "{name}");
    }
}

fn model() -> Model {
    TINY.model(QuantizationType::Q8_0, &lora(4, &ALL_LINEAR))
}

#[test]
fn micro_batches_of_eight_four_and_one_give_the_same_step() {
    let (model, rows) = (model(), eight_rows());
    for config in objective_kinds() {
        let cut = |size: usize| -> StepGradients {
            let batches: Vec<Batch> = rows.chunks(size).map(batch).collect();
            step(&model, &config, &batches)
        };
        let whole = cut(8);
        for size in [4, 3, 1] {
            assert_same(&format!("{config:?}, {size} rows at a time"), &cut(size), &whole);
        }
    }
}

#[test]
fn padding_on_either_side_changes_nothing() {
    let (model, rows) = (model(), eight_rows());
    let rows = &rows[..2];
    for config in objective_kinds() {
        let tight: Vec<Batch> = rows.iter().map(|row| batch(std::slice::from_ref(row))).collect();
        let tight = step(&model, &config, &tight);
        for left in [0, 6] {
            let padded = pad(rows, left, 40);
            let padded = step(&model, &config, &[padded]);
            assert_same(&format!("{config:?}, {left} on the left"), &padded, &tight);
        }
    }
}

#[test]
fn samples_packed_into_one_row_count_as_samples_of_their_own() {
    let (model, rows) = (model(), eight_rows());
    let packed = pack(&rows);
    for config in objective_kinds() {
        let apart = step(&model, &config, &[batch(&rows)]);
        let packed = step(&model, &config, std::slice::from_ref(&packed));
        assert_same(&format!("{config:?}, packed"), &packed, &apart);
    }
}

/// What a run does with `data.packing`: best-fit packs of an epoch, cut into micro-batches.
#[test]
fn an_epoch_in_packs_is_the_same_step_as_its_rows_one_by_one() {
    let (model, rows) = (model(), eight_rows());
    let longest = rows.iter().map(Sequence::len).max().unwrap();
    let plan = Plan::new(&Rows::of(&rows), Arrangement::Packed { max_seq_len: longest + 9 }, 5);
    let epoch = plan.epoch(0);
    let packs: Vec<Vec<&Sequence>> =
        (0..epoch.len()).map(|pack| epoch.pack(pack).iter().map(|&row| &rows[row as usize]).collect()).collect();
    assert!(packs.len() < rows.len() && packs.iter().any(|pack| pack.len() > 1), "some rows share a pack");
    for config in objective_kinds() {
        let apart = step(&model, &config, &[batch(&rows)]);
        for micro in [1, 2, packs.len()] {
            let batches: Vec<Batch> = packs
                .chunks(micro)
                .map(|packs| Batch::collate_packed(&packs.iter().map(Vec::as_slice).collect::<Vec<_>>(), 0))
                .collect();
            assert_same(&format!("{config:?}, {micro} packs at a time"), &step(&model, &config, &batches), &apart);
        }
    }
}

/// A step is linear in the weights of its rows, and what it is divided by does not depend on them.
#[test]
fn a_rows_weight_multiplies_its_loss_and_its_gradient() {
    let (model, rows) = (model(), eight_rows());
    let weighted = |weights: [f32; 2]| -> Batch {
        batch(
            &rows[..2].iter().zip(weights).map(|(row, weight)| Sequence { weight, ..row.clone() }).collect::<Vec<_>>(),
        )
    };
    for config in objective_kinds().into_iter().filter(|config| !config.normalize_weights) {
        let of = |weights| step(&model, &config, &[weighted(weights)]);
        let (first, second, both) = (of([1.0, 0.0]), of([0.0, 1.0]), of([2.0, 0.5]));
        assert_eq!([first.denominator, second.denominator], [both.denominator; 2]);
        let sum = 2.0 * first.loss.sum + 0.5 * second.loss.sum;
        assert!((sum / both.loss.sum - 1.0).abs() < 1e-6, "{config:?}: {sum} is not {}", both.loss.sum);
        for (name, gradient) in &both.gradients {
            let expected =
                ((&first.gradients[name] * 2.0).unwrap() + (&second.gradients[name] * 0.5).unwrap()).unwrap();
            let distance = relative_distance(gradient, &expected);
            assert!(distance < 1e-5, "{config:?}: {name} is {distance} apart");
        }
    }
}

#[test]
fn computing_activations_again_changes_no_bit() {
    let lora = LoraConfig { lora_dropout: 0.2, ..lora(4, &ALL_LINEAR) };
    let model = TINY.model(QuantizationType::Q4_0, &lora);
    let rows = batch(&eight_rows());
    let places: Vec<u64> = (0..8).collect();
    let keys = dropout_keys(&rows, 1, &places);
    for config in objective_kinds() {
        let objective = objectives::build(&config);
        for compute in [Compute::F32, Compute::Bf16] {
            let pool = Pool::default();
            let run = |kept_layers| {
                let engine = Engine { kept_layers, compute, ..engine(&model, &*objective, &pool) };
                engine.step(std::slice::from_ref(&rows), |_| Some(keys.clone())).unwrap()
            };
            // Twice each: the second time on memory that others have left their numbers in.
            let kept = run(2);
            for kept_layers in [0, 1, 2, 0] {
                assert_same_bits(&kept, &run(kept_layers));
            }
        }
    }
}

#[test]
fn a_dropout_mask_belongs_to_the_sample_not_to_the_micro_batch() {
    let lora = LoraConfig { lora_dropout: 0.3, ..lora(4, &ALL_LINEAR) };
    let (model, rows) = (TINY.model(QuantizationType::Q8_0, &lora), eight_rows());
    let objective = objectives::build(&ObjectiveConfig::of(ObjectiveKind::Bft));
    let pool = Pool::default();
    let engine = engine(&model, &*objective, &pool);
    let cut = |size: usize| {
        let batches: Vec<Batch> = rows.chunks(size).map(batch).collect();
        let keys = |i: usize| {
            let places: Vec<u64> = (i * size..i * size + batches[i].rows).map(|place| place as u64).collect();
            Some(dropout_keys(&batches[i], 4, &places))
        };
        engine.step(&batches, keys).unwrap()
    };
    assert_same("dropout", &cut(3), &cut(8));
    let without = step(&model, &ObjectiveConfig::of(ObjectiveKind::Bft), &[batch(&rows)]);
    assert_ne!(without.loss.sum, cut(8).loss.sum, "something was dropped");
}

/// A step's memory is that of the steps before: nothing is allocated once batches have passed a few times.
#[test]
fn further_steps_take_no_new_buffers() {
    let lora = LoraConfig { lora_dropout: 0.1, ..lora(4, &ALL_LINEAR) };
    let (model, rows) = (TINY.model(QuantizationType::Q8_0, &lora), eight_rows());
    let objective = objectives::build(&ObjectiveConfig::of(ObjectiveKind::Bft));
    let batches: Vec<Batch> = rows.chunks(4).map(batch).collect();
    let capacity = 4 * 31;
    // With more threads, how many buffers are in use at a time is a matter of timing.
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    for compute in [Compute::F32, Compute::Bf16] {
        for kept_layers in [2, 1, 0] {
            let pool = Pool::default();
            let engine = Engine { compute, kept_layers, capacity, ..engine(&model, &*objective, &pool) };
            let step = |batches: &[Batch]| {
                let keys = |i: usize| Some(dropout_keys(&batches[i], 4, &[0, 1, 2, 3]));
                one.install(|| engine.step(batches, keys)).unwrap();
                pool.allocated()
            };
            let what = format!("{compute:?}, {kept_layers} layers kept");
            let first = step(&batches);
            assert!(first.0 > 0);
            // A buffer may have served a smaller need than its own: a few more are made, and then all needs are met.
            let settled = [(); 3].map(|()| step(&batches))[2];
            assert!(settled.1 < first.1 + first.1 / 50, "{what}: {first:?} became {settled:?}");
            for _ in 0..5 {
                assert_eq!(step(&batches), settled, "{what}");
            }
            // Neither does another order, nor a batch that is smaller.
            let (reversed, smaller) = ([batches[1].clone(), batches[0].clone()], [batch(&rows[2..5])]);
            for batches in [&reversed[..], &smaller] {
                let then = [(); 3].map(|()| step(batches))[2];
                assert!(then.1 < first.1 + first.1 / 25, "{what}: {settled:?} became {then:?}");
            }
        }
    }
}

/// What a rehearsal says of a step's buffers is what a step takes, to the byte: with and without dropout, adapters on some
/// modules, packing, many supervised tokens and few, and any number of layers kept. On one thread: how many small buffers the
/// tasks of several hold at once is chance.
#[test]
fn a_rehearsal_takes_what_the_steps_take() {
    let tiny = Tiny { hidden: 128, intermediate: 384, heads: 4, kv_heads: 2, layers: 3, vocabulary: 9000 };
    let dropping = LoraConfig { lora_dropout: 0.3, ..lora(6, &ALL_LINEAR) };
    let cases = [
        (lora(8, &ALL_LINEAR), batch(&rows(&[256; 3], tiny.vocabulary))),
        (dropping, batch(&rows(&[70, 131, 12], tiny.vocabulary))),
        (lora(5, &["q_proj", "down_proj"]), pack(&rows(&[150, 31, 512, 7], tiny.vocabulary))),
        (lora(16, &["v_proj"]), batch(&rows(&[3], tiny.vocabulary))),
    ];
    for (config, large) in &cases {
        let (model, plan) = (tiny.model(QuantizationType::Q8_0, config), tiny.plan(QuantizationType::Q8_0, config));
        let small = batch(&rows(&[9, 17], tiny.vocabulary));
        let all = [small.clone(), large.clone(), small];
        for compute in [Compute::F32, Compute::Bf16] {
            // With a reference, another pass comes first.
            for (kept_layers, kind) in
                [(3, ObjectiveKind::Bft), (1, ObjectiveKind::Bft), (0, ObjectiveKind::Eaft), (1, ObjectiveKind::Asft)]
            {
                let what = format!("rank {}, {compute:?}, {kept_layers} layers kept, {kind:?}", config.r);
                let held = assert_rehearsed(&what, [&model, &plan], config, &all, (compute, kept_layers, kind));
                assert!(held.touched <= held.allocated && held.touched > held.allocated / 20, "{held:?}");
            }
        }
    }
}
