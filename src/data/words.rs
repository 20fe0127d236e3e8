//! A tokenizer that remembers words.
//!
//! Text is cut in front of a space between something visible and a letter. There, the tokenizers whose way of splitting is
//! known (`of_words`) cut in any case, so the tokens of the pieces are the tokens of the whole; and since most pieces are
//! words that were there before, most need no tokenizer. Other tokenizers get the text whole.

use super::quiet::quietly;
use crate::error::{Error, Result};
use crate::weights::WORD_PATTERNS;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};
use tokenizers::{Encoding, ModelWrapper, Tokenizer};

/// The longest piece that is remembered, in bytes.
const MAX_PIECE: usize = 40;
/// The most pieces that a thread remembers, and all threads together.
const MAX_PIECES: usize = 1 << 16;
const ALL_PIECES: usize = 1 << 19;

/// Tokens of a text, and the bytes that each stands for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tokens {
    /// The tokens.
    pub ids: Vec<u32>,
    /// Where each begins and ends.
    pub offsets: Vec<(usize, usize)>,
}

type Memory = HashMap<Box<str>, Box<[(u32, u32, u32)]>>;

/// A tokenizer, with a memory for each thread where it is one of words.
#[derive(Debug)]
pub struct WordTokenizer {
    tokenizer: Tokenizer,
    /// Empty where texts are not cut.
    memories: Vec<Mutex<Memory>>,
    vocabulary: OnceLock<Vocabulary>,
}

/// What is asked of all tokens together. To list them takes a moment, so it is done once, and only where it is asked for.
#[derive(Debug, Clone, Copy)]
struct Vocabulary {
    highest: u32,
    /// Bytes of the longest token's name.
    longest: usize,
}

impl WordTokenizer {
    /// Remembers for this tokenizer, if its way of splitting is known.
    pub fn new(tokenizer: Tokenizer) -> Self {
        let threads = if of_words(&tokenizer) { rayon::current_num_threads() + 1 } else { 0 };
        let memories = std::iter::repeat_with(Mutex::default).take(threads).collect();
        Self { tokenizer, memories, vocabulary: OnceLock::new() }
    }

    fn vocabulary(&self) -> Vocabulary {
        *self.vocabulary.get_or_init(|| {
            let nothing = Vocabulary { highest: 0, longest: 1 };
            self.tokenizer.get_vocab(true).iter().fold(nothing, |all, (token, &id)| Vocabulary {
                highest: all.highest.max(id),
                longest: all.longest.max(token.len()),
            })
        })
    }

    /// The highest token; ids may have gaps.
    pub fn highest_token(&self) -> u32 {
        self.vocabulary().highest
    }

    /// The most bytes of text that a token can stand for; `None` where that cannot be told.
    pub fn longest_token(&self) -> Option<usize> {
        // Composing characters (NFC) makes one byte of three at most; each character of a token is a byte.
        (!self.memories.is_empty()).then(|| 3 * self.vocabulary().longest)
    }

    /// The tokenizer itself.
    pub const fn inner(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The tokens of a text, as the tokenizer has them, without special tokens added.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn encode(&self, text: &str) -> Result<Tokens> {
        let mut tokens = Tokens::default();
        let Some(others) = self.memories.len().checked_sub(1) else {
            self.append(text, 0, &mut tokens)?;
            return Ok(tokens);
        };
        let memory = &self.memories[rayon::current_thread_index().unwrap_or(others).min(others)];
        // Whatever a thread left in the middle of, what is remembered is right.
        let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
        let most = MAX_PIECES.min(ALL_PIECES / self.memories.len());
        let mut begin = 0;
        for end in cuts(text).chain([text.len()]) {
            let piece = &text[begin..end];
            if let Some(known) = memory.get(piece) {
                for &(id, from, to) in known {
                    tokens.ids.push(id);
                    tokens.offsets.push((begin + from as usize, begin + to as usize));
                }
            } else {
                let first = tokens.ids.len();
                self.append(piece, begin, &mut tokens)?;
                if piece.len() <= MAX_PIECE && memory.len() < most {
                    let new = tokens.ids[first..].iter().zip(&tokens.offsets[first..]);
                    let new = new.map(|(&id, &(from, to))| (id, (from - begin) as u32, (to - begin) as u32)).collect();
                    memory.insert(piece.into(), new);
                }
            }
            begin = end;
        }
        Ok(tokens)
    }

    fn append(&self, text: &str, begin: usize, tokens: &mut Tokens) -> Result<()> {
        let encoding = encoded(&self.tokenizer, text)?;
        tokens.ids.extend_from_slice(encoding.get_ids());
        tokens.offsets.extend(encoding.get_offsets().iter().map(|&(from, to)| (begin + from, begin + to)));
        Ok(())
    }
}

/// A text as a tokenizer has it, without special tokens added. Its regular expressions are a file's, and `onig` panics where one
/// takes too many tries.
///
/// # Errors
/// When the tokenizer fails.
pub fn encoded(tokenizer: &Tokenizer, text: &str) -> Result<Encoding> {
    let encoding = quietly(|| tokenizer.encode(text, false)).ok_or_else(panicked)?;
    encoding.map_err(|error| failed(&*error))
}

/// The error of a tokenizer that panics.
pub fn panicked() -> Error {
    Error::invalid("the tokenizer fails on this text: most likely one of its regular expressions takes too many tries")
        .with_help("check the patterns in the base's tokenizer.json (`pre_tokenizer`, `normalizer`, `decoder`)")
}

/// What a tokenizer's failure means to a user.
pub fn failed(error: &(dyn std::error::Error + Send + Sync)) -> Error {
    Error::invalid(format!("the tokenizer fails: {error}")).with_help("check the base's tokenizer.json")
}

/// Where a text is cut: before a space that stands between a visible ASCII character and an ASCII letter.
fn cuts(text: &str) -> impl Iterator<Item = usize> {
    let bytes = text.as_bytes();
    (1..bytes.len().saturating_sub(1))
        .filter(|&i| bytes[i] == b' ' && bytes[i - 1].is_ascii_graphic() && bytes[i + 1].is_ascii_alphabetic())
}

/// Whether a tokenizer cuts, in any text, where [`cuts`] does, and takes no notice of what lies on the other side: bytes
/// under byte-pair encoding, split by patterns that are known, with no added token that reaches over a space.
fn of_words(tokenizer: &Tokenizer) -> bool {
    let ModelWrapper::BPE(model) = tokenizer.get_model() else { return false };
    if model.dropout.is_some_and(|share| share > 0.0) {
        return false;
    }
    let json = |part: Option<serde_json::Result<Value>>| match part {
        None => Some(Value::Null),
        Some(part) => part.ok(),
    };
    let Some(normalizer) = json(tokenizer.get_normalizer().map(serde_json::to_value)) else { return false };
    let Some(splitter) = json(tokenizer.get_pre_tokenizer().map(serde_json::to_value)) else { return false };
    let added = tokenizer.get_added_tokens_decoder();
    let within_words = added.values().all(|token| {
        !(token.lstrip || token.rstrip || token.single_word || token.content.contains(char::is_whitespace))
    });
    within_words && keeps_words(&normalizer) && splits_words(&splitter)
}

fn keeps_words(normalizer: &Value) -> bool {
    let parts = normalizer["normalizers"].as_array();
    match normalizer["type"].as_str() {
        None => normalizer.is_null(),
        Some("NFC") => true,
        Some("Sequence") => parts.is_some_and(|parts| parts.iter().all(keeps_words)),
        Some(_) => false,
    }
}

/// Whether a pre-tokenizer ends with bytes, and splits words at the latest there.
fn splits_words(splitter: &Value) -> bool {
    let empty = Vec::new();
    let steps = match splitter["type"].as_str() {
        Some("Sequence") => splitter["pretokenizers"].as_array().unwrap_or(&empty).iter().collect(),
        _ => vec![splitter],
    };
    let Some((last, others)) = steps.split_last() else { return false };
    if last["type"] != "ByteLevel" || last["add_prefix_space"] != false {
        return false;
    }
    let mut split = last["use_regex"] == true;
    for step in others {
        let known = match step["type"].as_str() {
            Some("Digits") => true,
            Some("Split") => {
                let pattern = step["pattern"]["Regex"].as_str().unwrap_or_default();
                let known = WORD_PATTERNS.iter().find(|(other, _)| *other == pattern);
                split |= known.is_some_and(|(_, words)| *words);
                known.is_some() && step["behavior"] == "Isolated" && step["invert"] == false
            }
            _ => false,
        };
        if !known {
            return false;
        }
    }
    split
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::testing::{shared, tokenizer};
    use proptest::prelude::*;
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;
    use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
    use tokenizers::{AddedToken, SplitDelimiterBehavior};

    fn whole(tokenizer: &Tokenizer, text: &str) -> Tokens {
        let encoding = tokenizer.encode(text, false).unwrap();
        Tokens { ids: encoding.get_ids().to_vec(), offsets: encoding.get_offsets().to_vec() }
    }

    /// The test tokenizer with each of the patterns that are taken for ones of words.
    fn tokenizers() -> Vec<WordTokenizer> {
        let bare = || {
            let mut tokenizer = tokenizer();
            tokenizer.with_post_processor(None::<tokenizers::PostProcessorWrapper>);
            tokenizer
        };
        let mut all = vec![WordTokenizer::new(bare())];
        for (pattern, _) in WORD_PATTERNS.iter().filter(|(_, words)| *words) {
            let mut tokenizer = bare();
            let pattern = SplitPattern::Regex((*pattern).to_string());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).unwrap();
            let steps = vec![split.into(), ByteLevel::new(false, true, false).into()];
            tokenizer.with_pre_tokenizer(Some(tokenizers::pre_tokenizers::sequence::Sequence::new(steps)));
            all.push(WordTokenizer::new(tokenizer));
        }
        // As SmolLM2 has it: digits first, each by itself.
        let mut digits = bare();
        let digit = Split::new(SplitPattern::Regex(r"\p{N}".into()), SplitDelimiterBehavior::Isolated, false).unwrap();
        let steps = vec![digit.into(), ByteLevel::new(false, true, true).into()];
        digits.with_pre_tokenizer(Some(tokenizers::pre_tokenizers::sequence::Sequence::new(steps)));
        all.push(WordTokenizer::new(digits));
        assert!(all.iter().all(|tokenizer| !tokenizer.memories.is_empty()), "all are of words");
        all
    }

    #[test]
    fn what_is_not_of_words_is_not_cut() {
        let is_cut = |change: &dyn Fn(&mut Tokenizer)| {
            let mut tokenizer = tokenizer();
            change(&mut tokenizer);
            of_words(&tokenizer)
        };
        assert!(is_cut(&|_| {}));
        assert!(
            !is_cut(&|t| _ = t.with_pre_tokenizer(Some(ByteLevel::new(true, true, true)))),
            "a space before any text"
        );
        assert!(
            !is_cut(&|t| _ = t.with_pre_tokenizer(Some(ByteLevel::new(false, true, false)))),
            "no splitting at all"
        );
        assert!(!is_cut(&|t| _ = t.with_normalizer(Some(tokenizers::normalizers::Lowercase))));
        assert!(!is_cut(&|t| _ = t.add_special_tokens([AddedToken::from("a b", true)]).unwrap()));
        assert!(!is_cut(&|t| _ = t.add_special_tokens([AddedToken::from("<x>", true).rstrip(true)]).unwrap()));
    }

    proptest! {
        #[test]
        fn tokens_of_any_text_are_those_of_the_whole(
            parts in proptest::collection::vec(
                prop_oneof![
                    " ?[a-zA-Z]{1,4}", "[ \n\t\r\u{a0}\u{3000}]{1,3}", "[0-9]{1,4}", "['’.,:;/<|>]{1,3}", "\\PC{1,3}",
                    Just("<|im_start|>".to_owned()), Just("'s".to_owned()), Just(" e\u{301}".to_owned()),
                ],
                0..24,
            ),
        ) {
            let text = parts.concat();
            for tokenizer in tokenizers() {
                let expected = whole(tokenizer.inner(), &text);
                prop_assert_eq!(tokenizer.encode(&text).unwrap(), expected.clone());
                prop_assert_eq!(tokenizer.encode(&text).unwrap(), expected, "remembered");
            }
        }
    }

    /// A pattern of somebody else's tokenizer must not end the process.
    #[test]
    fn a_pattern_that_takes_too_long_is_an_error() {
        let mut bare = tokenizer();
        let json = serde_json::json!({"type": "Split", "pattern": {"Regex": "(?:a|a)*b"}, "behavior": "Isolated", "invert": false});
        let split: tokenizers::PreTokenizerWrapper = serde_json::from_value(json).unwrap();
        bare.with_pre_tokenizer(Some(split));
        let error = WordTokenizer::new(bare).encode(&format!("{}xb", "a".repeat(60))).unwrap_err();
        assert!(error.to_string().contains("takes too many tries"), "{error}");
    }

    #[test]
    fn real_text_has_the_tokens_that_it_had() {
        let Some(path) = shared("data/medquad/train.jsonl") else { return };
        let text = std::fs::read_to_string(path).unwrap();
        let tokenizers = tokenizers();
        for line in text.lines().step_by(150) {
            for tokenizer in &tokenizers {
                assert_eq!(tokenizer.encode(line).unwrap(), whole(tokenizer.inner(), line));
            }
        }
    }
}
