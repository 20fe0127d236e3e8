//! Rows of tokens as rectangles, and which logits predict which labels. It knows neither tensors nor objectives.

use super::tokenize::{IGNORED, Sequence};

/// Samples side by side: `rows × width`, row by row.
///
/// Padding is known by its segment, 0, never by its token: the padding token may well be EOS.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Rows.
    pub rows: usize,
    /// Tokens of a row, padding included.
    pub width: usize,
    /// Tokens, `[rows, width]`.
    pub input_ids: Vec<u32>,
    /// Labels, `[rows, width]`, not shifted; -100 is ignored.
    pub labels: Vec<i64>,
    /// The place of each token in its sample, from 0, `[rows, width]`.
    pub position_ids: Vec<u32>,
    /// 0 for padding, else the number of the sample within the row, from 1, `[rows, width]`.
    pub segment_ids: Vec<u32>,
    /// The weight of each sample, in the order of rows and segments.
    pub weights: Vec<f32>,
}

/// A supervised prediction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The flat index, `row · width + t`, of the logits that predict `label` (which stands at `t + 1`).
    pub position: usize,
    /// The token to predict.
    pub label: u32,
    /// Which sample of the batch it belongs to, from 0, in the order of rows and segments.
    pub sample: usize,
}

impl Batch {
    /// One sample a row, padded on the right to the longest. No sample may be empty.
    pub fn collate(sequences: &[&Sequence], pad_id: u32) -> Self {
        let rows: Vec<&[&Sequence]> = sequences.iter().map(std::slice::from_ref).collect();
        Self::collate_packed(&rows, pad_id)
    }

    /// The samples of each pack in one row, one behind the other, padded on the right to the longest. Positions begin anew
    /// with each sample. No sample may be empty.
    pub fn collate_packed(packs: &[&[&Sequence]], pad_id: u32) -> Self {
        let rows = packs.len();
        let tokens = |pack: &&[&Sequence]| pack.iter().map(|sequence| sequence.len()).sum::<usize>();
        let width = packs.iter().map(tokens).max().unwrap_or(0);
        let mut batch = Self {
            rows,
            width,
            input_ids: vec![pad_id; rows * width],
            labels: vec![IGNORED; rows * width],
            position_ids: vec![0; rows * width],
            segment_ids: vec![0; rows * width],
            weights: packs.iter().flat_map(|pack| pack.iter().map(|sequence| sequence.weight)).collect(),
        };
        for (row, pack) in packs.iter().enumerate() {
            let mut begin = row * width;
            for (sequence, segment) in pack.iter().zip(1..) {
                debug_assert!(!sequence.is_empty(), "an empty sample has no row to stand in");
                let range = begin..begin + sequence.len();
                batch.input_ids[range.clone()].copy_from_slice(&sequence.input_ids);
                batch.labels[range.clone()].copy_from_slice(&sequence.labels);
                batch.segment_ids[range.clone()].fill(segment);
                begin = range.end;
                for (position, index) in range.enumerate() {
                    batch.position_ids[index] = position as u32;
                }
            }
        }
        batch
    }

    /// Number of samples, those without a supervised token included.
    pub fn samples(&self) -> usize {
        (0..self.segment_ids.len()).filter(|&index| self.starts_sample(index)).count()
    }

    /// Number of tokens without padding.
    pub fn tokens(&self) -> usize {
        self.segment_ids.iter().filter(|&&segment| segment != 0).count()
    }

    /// The supervised predictions, in order. Logits at `t` predict the label at `t + 1` of the same sample.
    pub fn supervised_targets(&self) -> Vec<Target> {
        let mut targets = Vec::new();
        let mut started = 0;
        for index in 0..self.labels.len() {
            if self.starts_sample(index) {
                started += 1;
            } else if self.segment_ids[index] != 0 && self.labels[index] != IGNORED {
                let label = self.labels[index] as u32;
                targets.push(Target { position: index - 1, label, sample: started - 1 });
            }
        }
        targets
    }

    /// Whether a sample's first token stands here; nothing predicts it.
    fn starts_sample(&self, index: usize) -> bool {
        let segment = self.segment_ids[index];
        segment != 0 && (index.is_multiple_of(self.width) || self.segment_ids[index - 1] != segment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(ids: &[u32], labels: &[i64]) -> Sequence {
        Sequence::new(ids.to_vec(), labels.to_vec())
    }

    fn target(position: usize, label: u32, sample: usize) -> Target {
        Target { position, label, sample }
    }

    #[test]
    fn padding_is_masked_by_place_even_where_it_is_eos() {
        let eos = 9;
        let long = sequence(&[1, 2, 3, eos], &[IGNORED, IGNORED, 3, 9]);
        let short = sequence(&[4, eos], &[IGNORED, 9]);
        let silent = sequence(&[5, 6, 7], &[5, IGNORED, IGNORED]);
        let batch = Batch::collate(&[&long, &short, &silent], eos);
        assert_eq!((batch.rows, batch.width, batch.samples(), batch.tokens()), (3, 4, 3, 9));
        assert_eq!(batch.input_ids[4..8], [4, eos, eos, eos]);
        assert_eq!(batch.labels[4..8], [IGNORED, 9, IGNORED, IGNORED]);
        assert_eq!(batch.position_ids[..4], [0, 1, 2, 3]);
        assert_eq!(batch.supervised_targets(), [target(1, 3, 0), target(2, 9, 0), target(4, 9, 1)]);
    }

    #[test]
    fn left_padding_and_packed_rows_keep_samples_apart() {
        let batch = Batch {
            weights: vec![1.0; 3],
            rows: 2,
            width: 5,
            input_ids: vec![0, 0, 1, 2, 3, 4, 5, 6, 7, 0],
            labels: vec![IGNORED, IGNORED, 1, 2, 3, IGNORED, 5, 6, 7, IGNORED],
            position_ids: vec![0, 0, 0, 1, 2, 0, 1, 0, 1, 0],
            segment_ids: vec![0, 0, 1, 1, 1, 1, 1, 2, 2, 0],
        };
        assert_eq!((batch.samples(), batch.tokens()), (3, 7));
        let targets = batch.supervised_targets();
        assert_eq!(targets, [target(2, 2, 0), target(3, 3, 0), target(5, 5, 1), target(7, 7, 2)]);
    }

    #[test]
    fn samples_of_a_pack_stand_behind_one_another_and_count_from_0() {
        let (a, b, c) = (sequence(&[1, 2], &[IGNORED, 2]), sequence(&[3], &[3]), sequence(&[4, 5], &[4, 5]));
        let batch = Batch::collate_packed(&[&[&a, &b], &[&c]], 9);
        assert_eq!(batch.input_ids, [1, 2, 3, 4, 5, 9]);
        assert_eq!(batch.position_ids, [0, 1, 0, 0, 1, 0]);
        assert_eq!(batch.segment_ids, [1, 1, 2, 1, 1, 0]);
        assert_eq!((batch.samples(), batch.tokens()), (3, 5));
        assert_eq!(batch.supervised_targets(), [target(0, 2, 0), target(3, 5, 2)]);
    }

    #[test]
    fn nothing_collates_to_nothing() {
        let batch = Batch::collate(&[], 0);
        assert_eq!((batch.rows, batch.samples(), batch.supervised_targets().len()), (0, 0, 0));
    }
}
