//! What each objective makes of the same sample: the weight of every token.
//!
//! ```sh
//! cargo run --release --example objective
//! ```
//!
//! An objective sees log-probabilities only, neither a model nor a logit.
#![expect(clippy::print_stdout, reason = "a program that speaks to people")]

use equipoise::objectives::{LabelLogProbs, ObjectiveConfig, ObjectiveKind, StepTotals, build, min_group_confidence};

const GROUP_SIZE: usize = 3;

fn main() {
    // The model knows the sample's beginning and end, and stumbles in the middle.
    let probabilities = [0.9, 0.95, 0.8, 0.05, 0.2, 0.1, 0.7, 0.9];
    let log_probabilities: Vec<f64> = probabilities.iter().map(|p: &f64| p.ln()).collect();
    let labels = LabelLogProbs {
        log_probabilities: &log_probabilities,
        lengths: &[probabilities.len()],
        ..LabelLogProbs::default()
    };

    let weakest = min_group_confidence(&log_probabilities, GROUP_SIZE);
    println!("the weakest window of {GROUP_SIZE} tokens begins at token {}", weakest.start.unwrap_or(0));
    println!(
        "its confidence c is {:.3}, so that BFT weighs the sample by 1 - c = {:.3}\n",
        weakest.value,
        1.0 - weakest.value
    );

    // What stands before each token's cross-entropy in the loss of a step that has this sample alone.
    let columns = [ObjectiveKind::Sft, ObjectiveKind::Dft, ObjectiveKind::Bft].map(|kind| {
        let objective = build(&ObjectiveConfig { kind, group_size: GROUP_SIZE, ..ObjectiveConfig::default() });
        let weights = objective.weigh(&labels).weights;
        let denominator = objective.denominator(&StepTotals {
            samples: 1,
            supervised_tokens: probabilities.len(),
            weight: weights.iter().sum(),
        });
        weights.into_iter().map(|weight| weight / denominator).collect::<Vec<_>>()
    });
    println!("token      p     sft     dft     bft");
    for (token, p) in probabilities.iter().enumerate() {
        println!("{token:>5}  {p:.3}  {:.4}  {:.4}  {:.4}", columns[0][token], columns[1][token], columns[2][token]);
    }
}
