//! The objectives against golden values in float64, which agree with the authors' code, and what must hold of them.

use crate::support::{floats, golden, json, tensors};
use candle_core::{DType, Tensor};
use equipoise::objectives::{
    self, LabelLogProbs, Mean, Objective, ObjectiveConfig, ObjectiveKind, SampleWeighting, TokenWeighting,
    min_group_confidence,
};

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
    ]
}

/// A golden case. Labels stand as the model gets them: the logits at `t` predict the label at `t + 1`.
struct Case {
    name: String,
    info: serde_json::Value,
    logits: Vec<Vec<Vec<f64>>>,
    labels: Vec<Vec<i64>>,
}

impl Case {
    /// `(sample, position of the logits, target)` of each supervised prediction.
    fn targets(&self) -> Vec<(usize, usize, usize)> {
        let rows = self.labels.iter().enumerate();
        let shifted = rows.flat_map(|(b, labels)| labels.iter().skip(1).enumerate().map(move |(t, &id)| (b, t, id)));
        shifted.filter(|(_, _, id)| *id >= 0).map(|(b, t, id)| (b, t, id as usize)).collect()
    }

    fn probabilities(&self, b: usize, t: usize) -> Vec<f64> {
        let logits = &self.logits[b][t];
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let exp: Vec<f64> = logits.iter().map(|x| (x - max).exp()).collect();
        let sum: f64 = exp.iter().sum();
        exp.into_iter().map(|x| x / sum).collect()
    }

    fn log_probabilities(&self) -> (Vec<f64>, Vec<usize>) {
        let targets = self.targets();
        let mut lengths = vec![0; self.labels.len()];
        for (b, _, _) in &targets {
            lengths[*b] += 1;
        }
        (targets.iter().map(|&(b, t, label)| self.probabilities(b, t)[label].ln()).collect(), lengths)
    }
}

fn cases() -> Vec<Case> {
    let stored = tensors(&golden("objectives.safetensors"));
    let infos = json(&golden("objectives.json"));
    let case = |(name, info): (&String, &serde_json::Value)| Case {
        name: name.clone(),
        info: info.clone(),
        logits: stored[&format!("{name}.logits")].to_dtype(DType::F64).unwrap().to_vec3().unwrap(),
        labels: stored[&format!("{name}.labels")].to_vec2().unwrap(),
    };
    let cases: Vec<Case> = infos.as_object().unwrap().iter().map(case).collect();
    assert_eq!(cases.len(), 6);
    cases
}

fn loss(objective: &dyn Objective, log_probabilities: &[f64], lengths: &[usize]) -> (f64, Vec<f64>) {
    let weighted = objective.weigh(&LabelLogProbs { log_probabilities, lengths });
    let denominator = objective.denominator(lengths.len(), log_probabilities.len());
    let sum: f64 = weighted.weights.iter().zip(log_probabilities).map(|(w, log_p)| -w * log_p).sum();
    (sum / denominator, weighted.weights.iter().map(|w| w / denominator).collect())
}

#[test]
fn losses_and_gradients_match_the_golden_values() {
    let stored = tensors(&golden("objectives.safetensors"));
    for case in cases() {
        let (group_size, gamma) = (case.info["group_size"].as_u64().unwrap() as usize, &case.info["gamma"]);
        let (log_p, lengths) = case.log_probabilities();
        for (name, config) in variants(group_size, gamma.as_f64().unwrap()) {
            let (loss, weights) = loss(&*objectives::build(&config), &log_p, &lengths);
            let expected = case.info["loss"][name].as_f64().unwrap();
            assert!((loss / expected - 1.0).abs() < 1e-6, "{} {name}: {loss} is not {expected}", case.name);

            let golden: Tensor = stored[&format!("{}.grad.{name}", case.name)].to_dtype(DType::F64).unwrap();
            let golden = golden.to_vec3::<f64>().unwrap();
            let mut gradient: Vec<Vec<Vec<f64>>> =
                golden.iter().map(|rows| rows.iter().map(|row| vec![0.0; row.len()]).collect()).collect();
            for (&(b, t, label), weight) in case.targets().iter().zip(weights) {
                gradient[b][t] = case.probabilities(b, t).into_iter().map(|p| p * weight).collect();
                gradient[b][t][label] -= weight;
            }
            let flat = |x: &[Vec<Vec<f64>>]| x.iter().flatten().flatten().copied().collect::<Vec<f64>>();
            let (gradient, golden) = (flat(&gradient), flat(&golden));
            let scale = golden.iter().fold(0.0, |max: f64, g| max.max(g.abs()));
            let worst = gradient.iter().zip(&golden).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(worst < 1e-5 * scale, "{} {name}: a gradient is off by {worst} of {scale}", case.name);
        }
    }
}

#[test]
fn confidences_their_windows_and_sample_weights_match_the_golden_values() {
    for case in cases() {
        let group_size = case.info["group_size"].as_u64().unwrap() as usize;
        let gamma = case.info["gamma"].as_f64().unwrap();
        let (log_probabilities, lengths) = case.log_probabilities();
        let labels = LabelLogProbs { log_probabilities: &log_probabilities, lengths: &lengths };
        for (b, sample) in labels.samples().enumerate() {
            let golden = |key: &str| floats(&case.info[key])[b];
            let geometric = min_group_confidence(sample, group_size, Mean::Geometric);
            let arithmetic = min_group_confidence(sample, group_size, Mean::Arithmetic);
            assert!((geometric.value - golden("min_group_confidence")).abs() < 1e-9, "{} {b}", case.name);
            assert!((arithmetic.value - golden("min_group_confidence_arithmetic")).abs() < 1e-9, "{} {b}", case.name);
            assert!((1.0 - geometric.value.powf(gamma) - golden("sample_weight")).abs() < 1e-9, "{} {b}", case.name);
            let start = geometric.start.map_or(-1.0, |start| start as f64);
            assert_eq!(start, golden("min_group_start"), "{} {b}", case.name);
        }
    }
}

#[test]
fn the_token_only_ablation_is_bft_with_sample_weights_of_one() {
    let bft = config(ObjectiveKind::Bft, 4, 1.0);
    let tokens_only = ObjectiveConfig { sample_weighting: SampleWeighting::None, ..bft };
    let log_p: Vec<f64> = [0.5f64, 0.25, 0.125].iter().map(|p| p.ln()).collect();
    let (got, _) = loss(&*objectives::build(&tokens_only), &log_p, &[2, 1]);
    let sample = |ps: &[f64]| ps.iter().map(|p| -p * p.ln()).sum::<f64>() / (ps.len() as f64 + 1e-8);
    assert!((got - f64::midpoint(sample(&[0.5, 0.25]), sample(&[0.125]))).abs() < 1e-12);
}
