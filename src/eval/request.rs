//! Texts as tokens, cut and joined as lm-eval does for causal models.

use crate::data::Encoder;
use crate::error::{Error, Result};
use crate::models::Continuations;
use crate::text_scores::is_space;

/// What makes tokens of requests.
#[derive(Debug, Clone, Copy)]
pub struct Tokens<'a> {
    /// The tokenizer, with the special tokens that the base has.
    pub encoder: &'a Encoder,
    /// Stands before a text that has nothing before it: BOS, or EOS where there is none.
    pub prefix: u32,
    /// The most tokens of a text: the model's positions, or fewer.
    pub max_length: usize,
}

/// A context and a continuation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pair {
    pub context: Vec<u32>,
    pub continuation: Vec<u32>,
    /// Whether the context lost its beginning.
    pub is_cut: bool,
}

impl Tokens<'_> {
    /// The tokens of a text, after BOS where the tokenizer puts it; not where the text begins with it.
    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match self.encoder.bos() {
            Some((bos, id)) if id == self.prefix && text.starts_with(bos) => self.encoder.encode_bare(text),
            _ => self.encoder.encode_text(text),
        }
    }

    /// The tokens of a prompt that a text continues, the last `most` of them, and whether there were more.
    pub(super) fn prompt(&self, text: &str, most: usize) -> Result<(Vec<u32>, bool)> {
        let mut ids = self.encode(text)?;
        let over = ids.len().saturating_sub(most);
        ids.drain(..over);
        Ok((ids, over > 0))
    }

    /// A context and what follows it, tokenized as one text: white space at the context's end belongs to the continuation.
    ///
    /// # Errors
    /// When nothing is left of the continuation, or it is longer than the model.
    pub(super) fn pair(&self, context: &str, continuation: &str) -> Result<Pair> {
        if context.is_empty() {
            let mut ids = self.encoder.encode_bare(continuation)?;
            let first = ids.first().copied();
            if first == Some(self.prefix) {
                ids.remove(0);
            }
            return self.cut(vec![self.prefix], ids, continuation);
        }
        let kept = context.trim_end_matches(is_space);
        let (whole, before) = (self.encode(&format!("{context}{continuation}"))?, self.encode(kept)?);
        let behind = whole.get(before.len()..).unwrap_or_default().to_vec();
        if before.is_empty() {
            return Err(Error::invalid("the context is white space alone, and the tokenizer puts no BOS before it"));
        }
        self.cut(before, behind, continuation)
    }

    /// Cuts a context on the left, so that all but the last token fit into the model.
    fn cut(&self, mut context: Vec<u32>, continuation: Vec<u32>, text: &str) -> Result<Pair> {
        if continuation.is_empty() {
            return Err(Error::invalid(format!("the continuation {text:?} has no token of its own")));
        }
        if continuation.len() > self.max_length {
            return Err(Error::invalid(format!(
                "a continuation has {} tokens, more than the {} that a text may have here",
                continuation.len(),
                self.max_length
            )));
        }
        let over = (context.len() + continuation.len()).saturating_sub(self.max_length + 1);
        context.drain(..over);
        Ok(Pair { context, continuation, is_cut: over > 0 })
    }

    /// Windows over a whole text, each predicted with as much before it as fits; what they predict does not overlap.
    pub(super) fn windows(&self, text: &str) -> Result<Vec<Pair>> {
        let ids = self.encode(text)?;
        Ok(windows(&ids, self.prefix, self.max_length))
    }
}

fn windows(ids: &[u32], prefix: u32, most: usize) -> Vec<Pair> {
    let mut windows = Vec::new();
    let first = ids.len().min(most);
    if first == 0 {
        return windows;
    }
    windows.push(Pair { context: vec![prefix], continuation: ids[..first].to_vec(), is_cut: false });
    let mut done = first;
    while done < ids.len() {
        let count = (ids.len() - done).min(most);
        let end = done + count;
        // As many inputs as the model has positions: the last of them predicts the last token.
        let context = ids[end.saturating_sub(most + 1)..done].to_vec();
        windows.push(Pair { context, continuation: ids[done..end].to_vec(), is_cut: false });
        done = end;
    }
    windows
}

/// Pairs whose contexts are the same, together; and for each pair where its answer is: the item, and the continuation.
pub(super) fn grouped(pairs: Vec<Pair>) -> (Vec<Continuations>, Vec<(usize, usize)>) {
    let (mut items, mut places): (Vec<Continuations>, Vec<(usize, usize)>) = (Vec::new(), Vec::new());
    for Pair { context, continuation, .. } in pairs {
        let known = items.iter().position(|item| item.context == context);
        let index = known.unwrap_or_else(|| {
            items.push(Continuations { context, continuations: Vec::new() });
            items.len() - 1
        });
        places.push((index, items[index].continuations.len()));
        items[index].continuations.push(continuation);
    }
    (items, places)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_predict_each_token_once_and_the_last_has_as_much_before_it_as_fits() {
        let ids: Vec<u32> = (0..10).collect();
        let parts: Vec<_> = windows(&ids, 99, 4).into_iter().map(|pair| (pair.context, pair.continuation)).collect();
        let expected = [(vec![99], vec![0, 1, 2, 3]), (vec![3], vec![4, 5, 6, 7]), (vec![5, 6, 7], vec![8, 9])];
        assert_eq!(parts, expected);
        assert_eq!(windows(&[], 99, 4), []);
        assert_eq!(windows(&ids[..2], 99, 4).len(), 1);
    }

    #[test]
    fn continuations_of_one_context_are_one_item() {
        let pair = |context: &[u32], continuation: &[u32]| Pair {
            context: context.to_vec(),
            continuation: continuation.to_vec(),
            is_cut: false,
        };
        let (items, places) = grouped(vec![pair(&[1], &[2]), pair(&[1, 2], &[3]), pair(&[1], &[4, 5])]);
        assert_eq!(items.len(), 2);
        assert_eq!(items[0].continuations, [vec![2], vec![4, 5]]);
        assert_eq!(places, [(0, 0), (1, 0), (0, 1)]);
    }
}
