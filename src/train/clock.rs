//! How long a run still takes: steps, validations and what comes after them are timed apart.

/// Steps that the speed is measured over.
const STEPS: usize = 50;

/// What is known of a run's time so far, and of its work to come.
#[derive(Debug, Clone)]
pub(super) struct Clock {
    /// Seconds and tokens of the last steps.
    steps: Vec<(f64, usize)>,
    /// Steps so far.
    count: usize,
    /// Seconds of validations, and how many there were.
    validations: (f64, usize),
    /// Tokens of a step in the mean.
    step_tokens: f64,
    /// What is done after the last step, as so many tokens of training.
    tokens_after: f64,
    /// Tokens of the validation rows.
    validation_tokens: f64,
}

impl Clock {
    pub fn new(step_tokens: f64, tokens_after: f64, validation_tokens: f64) -> Self {
        Self { steps: Vec::new(), count: 0, validations: (0.0, 0), step_tokens, tokens_after, validation_tokens }
    }

    pub fn step(&mut self, seconds: f64, tokens: usize) {
        self.count += 1;
        // The first step fetches its memory: it counts only until there is another one.
        if self.count == 2 || self.steps.len() == STEPS {
            self.steps.remove(0);
        }
        self.steps.push((seconds, tokens));
    }

    pub fn validation(&mut self, seconds: f64) {
        self.validations.0 += seconds;
        self.validations.1 += 1;
    }

    /// Seconds that so many steps and validations still take; `None` before the first step.
    pub fn left(&self, steps: usize, validations: usize) -> Option<f64> {
        let (seconds, tokens) = self.steps.iter().fold((0.0, 0), |sum, step| (sum.0 + step.0, sum.1 + step.1));
        let each = if tokens > 0 { seconds / tokens as f64 } else { return None };
        let validation = match self.validations {
            // A run that goes on has measured none yet. A pass without a backward pass takes a third.
            (_, 0) => each * self.validation_tokens / 3.0,
            (seconds, count) => seconds / count as f64,
        };
        Some(each * (steps as f64 * self.step_tokens + self.tokens_after) + validations as f64 * validation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_validations_and_the_end_are_told_apart() {
        let mut clock = Clock::new(100.0, 50.0, 900.0);
        assert_eq!(clock.left(9, 1), None);
        clock.validation(20.0);
        clock.step(5.0, 100);
        assert_eq!(clock.left(9, 1), Some(0.05 * 950.0 + 20.0), "the first is all that is known");
        // A step of 200 tokens, at 100 tokens a second; the first one no longer counts.
        clock.step(2.0, 200);
        assert_eq!(clock.left(8, 2), Some(0.01 * 850.0 + 40.0));
        clock.validation(10.0);
        clock.step(4.0, 400);
        assert_eq!(clock.left(0, 1), Some(0.01 * 50.0 + 15.0));
    }

    #[test]
    fn a_run_that_goes_on_counts_validations_before_its_first() {
        let mut clock = Clock::new(100.0, 0.0, 900.0);
        clock.step(1.0, 100);
        assert_eq!(clock.left(0, 2), Some(2.0 * 3.0), "900 tokens of 10 ms, at a third");
        clock.validation(5.0);
        assert_eq!(clock.left(0, 2), Some(10.0));
    }

    #[test]
    fn the_last_steps_count() {
        let mut clock = Clock::new(1.0, 0.0, 0.0);
        (0..500).for_each(|_| clock.step(9.0, 1));
        (0..STEPS).for_each(|_| clock.step(1.0, 1));
        assert_eq!(clock.left(10, 0), Some(10.0));
    }
}
