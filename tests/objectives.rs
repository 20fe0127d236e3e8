//! The objectives against golden values in float64, which agree with the authors' code, and what must hold of them.

use crate::support::{floats, golden, json, tensors};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use equipoise::objectives::{
    self, LabelLogProbs, Objective, ObjectiveConfig, ObjectiveKind, SampleWeighting, StepTotals, TokenWeighting,
    local_means, min_group_confidence, min_local_confidence,
};
use equipoise::ops::{FrozenWeight, HeadRequest, Pool, linear_cross_entropy};

fn config(kind: ObjectiveKind, group_size: usize, gamma: f64) -> ObjectiveConfig {
    ObjectiveConfig { kind, group_size, gamma, ..ObjectiveConfig::default() }
}

/// The golden losses by their names.
fn variants(group_size: usize, gamma: f64) -> Vec<(&'static str, ObjectiveConfig)> {
    let bft = config(ObjectiveKind::Bft, group_size, gamma);
    vec![
        ("sft_token_mean", config(ObjectiveKind::Sft, group_size, gamma)),
        ("dft_token_mean", config(ObjectiveKind::Dft, group_size, gamma)),
        ("bft", bft.clone()),
        ("bft_sample_only", ObjectiveConfig { token_weighting: TokenWeighting::None, ..bft.clone() }),
        ("bft_group_normalized", ObjectiveConfig { token_weighting: TokenWeighting::GroupNormalized, ..bft }),
        // Their keys are the golden ones by default.
        ("eaft", ObjectiveConfig::of(ObjectiveKind::Eaft)),
        ("asft", ObjectiveConfig::of(ObjectiveKind::Asft)),
        ("profit", ObjectiveConfig::of(ObjectiveKind::Profit)),
        ("prob_q_0.5", ObjectiveConfig::of(ObjectiveKind::Prob)),
    ]
}

/// A golden case. Labels stand as the model gets them: the logits at `t` predict the label at `t + 1`.
struct Case {
    name: String,
    info: serde_json::Value,
    logits: Vec<Vec<Vec<f64>>>,
    /// Those of the base alone.
    reference_logits: Vec<Vec<Vec<f64>>>,
    top20_entropy: Vec<Vec<f64>>,
    labels: Vec<Vec<i64>>,
}

/// What a head says of a case's supervised predictions.
struct Seen {
    log_probabilities: Vec<f64>,
    lengths: Vec<usize>,
    entropies: Vec<f64>,
    divergences: Vec<f64>,
    /// `∂ce / ∂logits` and `∂KL / ∂logits` of each.
    gradients: Vec<(Vec<f64>, Vec<f64>)>,
}

fn softmax(logits: &[f64]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exp: Vec<f64> = logits.iter().map(|x| (x - max).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.into_iter().map(|x| x / sum).collect()
}

impl Case {
    /// `(sample, position of the logits, target)` of each supervised prediction.
    fn targets(&self) -> Vec<(usize, usize, usize)> {
        let rows = self.labels.iter().enumerate();
        let shifted = rows.flat_map(|(b, labels)| labels.iter().skip(1).enumerate().map(move |(t, &id)| (b, t, id)));
        shifted.filter(|(_, _, id)| *id >= 0).map(|(b, t, id)| (b, t, id as usize)).collect()
    }

    fn lengths(&self) -> Vec<usize> {
        let mut lengths = vec![0; self.labels.len()];
        for (b, _, _) in self.targets() {
            lengths[b] += 1;
        }
        lengths
    }

    /// By the definitions, in `f64`.
    fn seen(&self) -> Seen {
        let (mut log_probabilities, mut entropies, mut divergences) = (Vec::new(), Vec::new(), Vec::new());
        let mut gradients = Vec::new();
        for (b, t, label) in self.targets() {
            let (p, p0) = (softmax(&self.logits[b][t]), softmax(&self.reference_logits[b][t]));
            log_probabilities.push(p[label].ln());
            entropies.push(self.top20_entropy[b][t]);
            divergences.push(p0.iter().zip(&p).map(|(p0, p)| p0 * (p0 / p).ln()).sum());
            let mut of_target = p.clone();
            of_target[label] -= 1.0;
            gradients.push((of_target, p.iter().zip(&p0).map(|(p, p0)| p - p0).collect()));
        }
        Seen { log_probabilities, lengths: self.lengths(), entropies, divergences, gradients }
    }

    /// By the operation that training uses, in `f32`: with the identity for a head, hidden states are logits.
    fn seen_by_the_head(&self) -> Seen {
        let targets = self.targets();
        let vocabulary = self.logits[0][0].len();
        let identity = Tensor::eye(vocabulary, DType::F32, &Device::Cpu).unwrap();
        let identity = FrozenWeight::quantized(&QTensor::quantize(&identity, GgmlDType::F32).unwrap()).unwrap();
        let labels: Vec<u32> = targets.iter().map(|&(_, _, label)| label as u32).collect();
        let pass = |logits: &[Vec<Vec<f64>>]| {
            let hidden: Vec<f32> =
                targets.iter().flat_map(|&(b, t, _)| &logits[b][t]).map(|&logit| logit as f32).collect();
            let request = HeadRequest { gradient: true, top_k: Some(20) };
            let pass = linear_cross_entropy(&hidden, &identity, &labels, None, request, (&Pool::default(), 0)).unwrap();
            let gradient: Vec<Vec<f64>> = pass.gradient.as_ref().unwrap().chunks(vocabulary).map(wide).collect();
            (hidden, pass, gradient)
        };
        let ((h, now, gradient), (h0, base, gradient0)) = (pass(&self.logits), pass(&self.reference_logits));
        // The convexity of cross-entropy in the hidden state: what the backends' `divergences` do.
        let along = gradient0.iter().zip(h.chunks(vocabulary).zip(h0.chunks(vocabulary))).map(|(gradient, (h, h0))| {
            gradient.iter().zip(wide(h).iter().zip(wide(h0))).map(|(g, (h, h0))| g * (h - h0)).sum::<f64>()
        });
        let ce = base.log_probabilities.iter().zip(&now.log_probabilities);
        let divergences = ce.zip(along).map(|((log_p0, log_p), along)| log_p0 - log_p - along).collect();
        let of_divergence = |(g, g0): (&Vec<f64>, &Vec<f64>)| g.iter().zip(g0).map(|(g, g0)| g - g0).collect();
        let gradients = gradient.iter().zip(&gradient0).map(|both| (both.0.clone(), of_divergence(both))).collect();
        let (log_probabilities, entropies) = (now.log_probabilities, now.entropies);
        Seen { log_probabilities, lengths: self.lengths(), entropies, divergences, gradients }
    }
}

fn wide(numbers: &[f32]) -> Vec<f64> {
    numbers.iter().map(|&x| f64::from(x)).collect()
}

fn cases() -> Vec<Case> {
    let stored = tensors(&golden("objectives.safetensors"));
    let infos = json(&golden("objectives.json"));
    let case = |(name, info): (&String, &serde_json::Value)| {
        let numbers = |of: &str| stored[&format!("{name}.{of}")].to_dtype(DType::F64).unwrap();
        Case {
            name: name.clone(),
            info: info.clone(),
            logits: numbers("logits").to_vec3().unwrap(),
            reference_logits: numbers("reference_logits").to_vec3().unwrap(),
            top20_entropy: numbers("top20_entropy").to_vec2().unwrap(),
            labels: stored[&format!("{name}.labels")].to_vec2().unwrap(),
        }
    };
    let cases: Vec<Case> = infos.as_object().unwrap().iter().map(case).collect();
    assert_eq!(cases.len(), 6);
    cases
}

/// The loss, and the gradient of each prediction's logits.
fn loss(objective: &dyn Objective, seen: &Seen) -> (f64, Vec<Vec<f64>>) {
    let labels = LabelLogProbs {
        log_probabilities: &seen.log_probabilities,
        lengths: &seen.lengths,
        entropies: &seen.entropies,
        divergences: &seen.divergences,
    };
    let weighted = objective.weigh(&labels);
    let denominator = objective.denominator(&StepTotals {
        samples: seen.lengths.len(),
        supervised_tokens: seen.log_probabilities.len(),
        weight: weighted.weights.iter().sum(),
    });
    let gradients = seen.gradients.iter().zip(&weighted.weights).map(|((of_target, of_divergence), weight)| {
        let both = of_target.iter().zip(of_divergence);
        both.map(|(a, b)| (weight * a + weighted.divergence_weight * b) / denominator).collect()
    });
    (weighted.losses.iter().sum::<f64>() / denominator, gradients.collect())
}

fn assert_golden(case: &Case, seen: &Seen, (of_loss, of_gradient): (f64, f64)) {
    let stored = tensors(&golden("objectives.safetensors"));
    let (group_size, gamma) = (case.info["group_size"].as_u64().unwrap() as usize, &case.info["gamma"]);
    for (name, config) in variants(group_size, gamma.as_f64().unwrap()) {
        let (loss, gradient) = loss(&*objectives::build(&config), seen);
        let expected = case.info["loss"][name].as_f64().unwrap();
        assert!((loss / expected - 1.0).abs() < of_loss, "{} {name}: {loss} is not {expected}", case.name);

        let golden: Tensor = stored[&format!("{}.grad.{name}", case.name)].to_dtype(DType::F64).unwrap();
        let golden = golden.to_vec3::<f64>().unwrap();
        let mut whole: Vec<Vec<Vec<f64>>> =
            golden.iter().map(|rows| rows.iter().map(|row| vec![0.0; row.len()]).collect()).collect();
        for (&(b, t, _), gradient) in case.targets().iter().zip(gradient) {
            whole[b][t] = gradient;
        }
        let flat = |x: &[Vec<Vec<f64>>]| x.iter().flatten().flatten().copied().collect::<Vec<f64>>();
        let (gradient, golden) = (flat(&whole), flat(&golden));
        let scale = golden.iter().fold(0.0, |max: f64, g| max.max(g.abs()));
        let worst = gradient.iter().zip(&golden).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst < of_gradient * scale, "{} {name}: a gradient is off by {worst} of {scale}", case.name);
    }
}

#[test]
fn losses_and_gradients_match_the_golden_values() {
    for case in cases() {
        assert_golden(&case, &case.seen(), (1e-6, 1e-5));
    }
}

/// The entropy of the largest logits and the divergence from the base, as training gets them, among all else.
#[test]
fn losses_and_gradients_by_the_head_match_the_golden_values() {
    for case in cases() {
        assert_golden(&case, &case.seen_by_the_head(), (1e-5, 2e-5));
    }
}

#[test]
fn confidences_their_windows_and_sample_weights_match_the_golden_values() {
    for case in cases() {
        let group_size = case.info["group_size"].as_u64().unwrap() as usize;
        let gamma = case.info["gamma"].as_f64().unwrap();
        let seen = case.seen();
        let labels = LabelLogProbs {
            log_probabilities: &seen.log_probabilities,
            lengths: &seen.lengths,
            ..LabelLogProbs::default()
        };
        let later = ObjectiveConfig {
            token_weighting: TokenWeighting::GroupNormalized,
            ..config(ObjectiveKind::Bft, group_size, gamma)
        };
        let later = objectives::build(&later).weigh(&labels).observations;
        let golden = |key: &str, b: usize| floats(&case.info[key])[b];
        for (b, sample) in labels.samples().enumerate() {
            let geometric = min_group_confidence(sample, group_size);
            assert!((geometric.value - golden("min_group_confidence", b)).abs() < 1e-9, "{} {b}", case.name);
            assert!((1.0 - geometric.value.powf(gamma) - golden("sample_weight", b)).abs() < 1e-9, "{} {b}", case.name);
            let start = geometric.start.map_or(-1.0, |start| start as f64);
            assert_eq!(start, golden("min_group_start", b), "{} {b}", case.name);
            let probabilities: Vec<f64> = sample.iter().map(|log_p| log_p.exp()).collect();
            let local = min_local_confidence(&local_means(&probabilities, group_size), group_size);
            assert!((local.value - golden("min_local_confidence", b)).abs() < 1e-9, "{} {b}", case.name);
        }
        let with_tokens = (0..seen.lengths.len()).filter(|&b| seen.lengths[b] > 0);
        for (b, weight) in with_tokens.zip(&later.sample_weight) {
            assert!((weight - golden("sample_weight_group_normalized", b)).abs() < 1e-9, "{} {b}", case.name);
        }
    }
}

fn of_probabilities(probabilities: &[f64], lengths: &[usize]) -> Seen {
    Seen {
        log_probabilities: probabilities.iter().map(|p| p.ln()).collect(),
        lengths: lengths.to_vec(),
        entropies: vec![1.5; probabilities.len()],
        divergences: vec![0.25; probabilities.len()],
        gradients: vec![(Vec::new(), Vec::new()); probabilities.len()],
    }
}

#[test]
fn the_token_only_ablation_is_bft_with_sample_weights_of_one() {
    let bft = config(ObjectiveKind::Bft, 4, 1.0);
    let tokens_only = ObjectiveConfig { sample_weighting: SampleWeighting::None, ..bft };
    let (got, _) = loss(&*objectives::build(&tokens_only), &of_probabilities(&[0.5, 0.25, 0.125], &[2, 1]));
    let sample = |ps: &[f64]| ps.iter().map(|p| -p * p.ln()).sum::<f64>() / (ps.len() as f64 + 1e-8);
    assert!((got - f64::midpoint(sample(&[0.5, 0.25]), sample(&[0.125]))).abs() < 1e-12);
}

#[test]
fn a_floor_holds_token_weights_up_and_normalized_weights_have_the_mean_one() {
    let seen = of_probabilities(&[0.5, 0.05, 0.9], &[2, 1]);
    let bft = ObjectiveConfig { token_weight_floor: 0.1, ..config(ObjectiveKind::Bft, 4, 1.0) };
    let (plain, _) = loss(&*objectives::build(&bft), &seen);
    let weights = [(1.0 - (0.5f64 * 0.05).sqrt()) / 2.0, 0.1];
    let samples = [weights[0] * (0.5 * 0.5f64.ln() + 0.1 * 0.05f64.ln()), weights[1] * 0.9 * 0.9f64.ln()];
    let sum = -(samples[0] + samples[1]);
    assert!((plain - sum / 2.0).abs() < 1e-8, "{plain}");
    let (normalized, _) = loss(&*objectives::build(&ObjectiveConfig { normalize_weights: true, ..bft }), &seen);
    assert!((normalized - sum / (weights[0] * 0.6 + weights[1] * 0.9)).abs() < 1e-8, "{normalized}");
}

#[test]
fn prob_is_between_cross_entropy_and_the_probability() {
    let seen = of_probabilities(&[0.5, 0.05, 0.9], &[2, 1]);
    let prob = |q| {
        loss(&*objectives::build(&ObjectiveConfig { q: Some(q), ..ObjectiveConfig::of(ObjectiveKind::Prob) }), &seen).0
    };
    let (sft, _) = loss(&*objectives::build(&ObjectiveConfig::of(ObjectiveKind::Sft)), &seen);
    assert!((prob(1e-9) - sft).abs() < 1e-6);
    assert!((prob(1.0) - (0.5 + 0.95 + 0.1) / 3.0).abs() < 1e-12);
}

#[test]
fn a_token_of_no_probability_counts_for_nothing_where_weights_say_so() {
    let seen = of_probabilities(&[0.5, 0.0], &[2]);
    let (profit, _) = loss(&*objectives::build(&ObjectiveConfig::of(ObjectiveKind::Profit)), &seen);
    assert!((profit - 2f64.ln() / 2.0).abs() < 1e-12, "{profit}");
    let (prob, _) = loss(&*objectives::build(&ObjectiveConfig::of(ObjectiveKind::Prob)), &seen);
    assert!((prob - f64::midpoint((1.0 - 0.5f64.sqrt()) / 0.5, 2.0)).abs() < 1e-12, "{prob}");
}
