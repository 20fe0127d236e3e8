//! The line of a step: what fits of it, the most important first.

use super::output::{bytes, duration};
use crate::train::metrics::StepMetrics;

/// The widths that a bar may have.
const BAR: std::ops::RangeInclusive<usize> = 6..=24;

/// Columns that stay free at the end.
const ECHO: usize = 3;

/// What a line says of a step.
pub(super) struct StepLine<'a> {
    pub metrics: &'a StepMetrics,
    pub total_steps: usize,
    /// The objective's name.
    pub objective: &'a str,
    pub seconds_left: Option<f64>,
}

impl StepLine<'_> {
    /// Its parts in their order, each with its rank: the lower, the longer it stays.
    fn parts(&self) -> Vec<(u8, String)> {
        let m = self.metrics;
        let mut parts =
            vec![(0, format!("{}/{}", m.step, self.total_steps)), (1, format!("cross-entropy {:.4}", m.cross_entropy))];
        // Under `sft` it is the same number.
        if self.objective != "sft" {
            parts.push((3, format!("{} loss {:.4}", self.objective, m.objective_loss)));
        }
        parts.push((6, format!("token accuracy {:.1}%", 100.0 * m.token_accuracy)));
        parts.push((7, format!("lr {:.2e}", m.learning_rate)));
        parts.push((4, format!("{:.0} tokens/s", m.tokens_per_second)));
        let gpu = m.peak_gpu_memory.map(|memory| format!("GPU {}", bytes(memory)));
        parts.extend(gpu.or_else(|| m.peak_memory.map(bytes)).map(|memory| (5, memory)));
        let left = self.seconds_left.filter(|left| *left > 0.0 && m.step < self.total_steps);
        parts.extend(left.map(|left| (2, format!("{} left", duration(left)))));
        parts
    }

    /// All of it.
    pub fn whole(&self) -> String {
        join(&self.parts())
    }

    /// What fits so many columns, and the width of a bar before it; 0 where there is no room for one.
    pub fn fitting(&self, columns: usize) -> (usize, String) {
        let mut parts = self.parts();
        loop {
            let line = join(&parts);
            // A terminal writes `^C` behind the line; where that breaks it, a part of it stays on the screen.
            let room = columns.saturating_sub(line.chars().count() + ECHO);
            // A bar is worth more than what it would push out, from tokens per second on.
            let wants_bar = parts.iter().any(|(rank, _)| *rank >= 4);
            if room > *BAR.start() {
                return ((room - 1).min(*BAR.end()), line);
            }
            if room > 0 && !wants_bar || parts.len() == 1 {
                return (0, line);
            }
            let Some(last) = parts.iter().map(|(rank, _)| *rank).max() else { return (0, line) };
            parts.retain(|(rank, _)| *rank != last);
        }
    }
}

fn join(parts: &[(u8, String)]) -> String {
    parts.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>().join("  ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objectives::ObjectiveMetrics;

    #[test]
    fn the_most_important_stays_on_a_narrow_terminal() {
        let metrics = StepMetrics {
            step: 54,
            epoch: 0.5,
            cross_entropy: 2.451_16,
            objective_loss: 0.0963,
            token_accuracy: 0.521,
            learning_rate: 1.89e-4,
            grad_norm: 1.0,
            tokens: 100,
            supervised_tokens: 50,
            tokens_per_second: 6782.4,
            peak_memory: Some(55 << 20),
            peak_gpu_memory: None,
            objective: ObjectiveMetrics::default(),
        };
        let line = StepLine { metrics: &metrics, total_steps: 300, objective: "bft", seconds_left: Some(13.0) };
        let whole = "54/300  cross-entropy 2.4512  bft loss 0.0963  token accuracy 52.1%  lr 1.89e-4  6782 tokens/s  \
                     55 MiB  13s left";
        assert_eq!(line.whole(), whole);
        assert_eq!(line.fitting(160), (24, whole.into()));
        assert_eq!(
            line.fitting(80),
            (6, "54/300  cross-entropy 2.4512  bft loss 0.0963  6782 tokens/s  13s left".into())
        );
        assert_eq!(line.fitting(60), (0, "54/300  cross-entropy 2.4512  bft loss 0.0963  13s left".into()));
        assert_eq!(line.fitting(42), (0, "54/300  cross-entropy 2.4512  13s left".into()));
        assert_eq!(line.fitting(10), (0, "54/300".into()));
        for columns in 10..200 {
            let (bar, text) = line.fitting(columns);
            let all = if bar > 0 { bar + 1 } else { 0 } + text.chars().count();
            assert!(all + ECHO <= columns, "{columns}: {bar} {text}");
        }
        let sft = StepLine { objective: "sft", ..line };
        assert!(!sft.whole().contains("sft loss"));
    }
}
