//! A row of the data, before and after: what base and adapter write where its first answer stands.

use super::Prepared;
use super::prepare::ends;
use super::report::Sample;
use crate::data::{IGNORED, Rows, Sequence};
use crate::error::Result;
use crate::models::{CausalLm, Generator, Sampling};
use crate::train::{Event, Observer};

/// Tokens of the sample in the summary.
const SAMPLE_TOKENS: usize = 48;

/// How many tokens of a batch take as long as one alone.
const TOKEN_ALONE: f64 = 8.0;

impl Prepared {
    /// What is done after the last step, as so many tokens of training: two samples.
    pub(super) fn tokens_after(&self) -> f64 {
        let Some(Ok(row)) = self.sample_row() else { return 0.0 };
        let answer = row.labels.iter().position(|&label| label != IGNORED).unwrap_or(0).max(1);
        // A pass without a backward pass takes a third; a single token takes as long as some, since every weight is read.
        2.0 * (answer as f64 + SAMPLE_TOKENS as f64 * TOKEN_ALONE) / 3.0
    }

    /// The validation row (without any, the training row) with the longest answer that a sample can hold.
    fn sample_row(&self) -> Option<Result<Sequence>> {
        let rows: &Rows =
            if self.dataset.validation.is_empty() { &self.dataset.train } else { &self.dataset.validation };
        let learnt = |row: &usize| rows.entry(*row).supervised as usize;
        let fits = (0..rows.len()).filter(|row| learnt(row) <= SAMPLE_TOKENS).max_by_key(learnt);
        fits.or_else(|| (!rows.is_empty()).then_some(0)).map(|row| rows.get(row))
    }

    /// What base and adapter write for a row of the data. That they cannot does not spoil a run that is done.
    pub(super) fn sample(&self, lm: &CausalLm, observer: &mut dyn Observer) -> Option<Sample> {
        let sample = self.sample_row()?.and_then(|row| self.write_sample(lm, &row));
        sample.map_err(|error| observer.event(&Event::Note(format!("no sample could be written: {error}")))).ok()
    }

    /// What base and adapter write where the row's first answer stands.
    fn write_sample(&self, lm: &CausalLm, row: &Sequence) -> Result<Sample> {
        // Where nothing stands before the answer, its first token is the prompt: a model continues something.
        let answer = row.labels.iter().position(|&label| label != IGNORED).unwrap_or(0).max(1);
        let length = row.labels[answer..].iter().take_while(|&&label| label != IGNORED).count();
        let (prompt, reference) = (&row.input_ids[..answer], &row.input_ids[answer..answer + length]);
        let ends = ends(&self.base, &self.encoder);
        let write = |adapter: bool| -> Result<String> {
            let mut tokens = Vec::new();
            let mut generator = Generator::new(lm, &self.device, adapter, Sampling::default());
            generator.run(prompt, SAMPLE_TOKENS, &ends, |token| {
                tokens.push(token);
                true
            })?;
            self.encoder.decode(&tokens, true)
        };
        Ok(Sample {
            prompt: self.encoder.decode(prompt, false)?,
            reference: self.encoder.decode(reference, true)?,
            before: write(false)?,
            after: write(true)?,
            raw: self.dataset.report.conversations == 0,
        })
    }
}
