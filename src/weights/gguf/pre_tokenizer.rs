//! How text is split before byte-pair encoding: what `tokenizer.ggml.pre` names.
//!
//! The patterns are those of the models' own `tokenizer.json`. A wrong one changes token ids without any error, so a name
//! that is not in the table is refused rather than guessed.

use tokenizers::SplitDelimiterBehavior;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};

pub(crate) const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const DIGIT: &str = r"\p{N}";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 3.5: marks go with letters.
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Punctuation takes no ends of lines along.
const SEED: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
/// As [`TEKKEN`], with contractions at the ends of words, and digits by threes.
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DIGITS_BY_THREES: &str = r"\p{N}{1,3}";
const CHINESE_AND_KANA: &str = "[一-龥\u{3040}-ゟ゠-ヿ]+";
const DEEPSEEK: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const PUNCTUATION: &str = r"[\p{P}\$\+<=>\^~\|]+";

/// The patterns, and whether each splits words: it cuts before a space that stands between something visible and a letter,
/// whatever lies around. The others cut within words, and never put anything together.
pub(crate) const WORD_PATTERNS: &[(&str, bool)] = &[
    (GPT2, true),
    (LLAMA3, true),
    (QWEN2, true),
    (QWEN35, true),
    (SEED, true),
    (TEKKEN, true),
    (GPT4O, true),
    (DEEPSEEK, true),
    (DIGIT, false),
    (r"\p{N}+", false),
    (DIGITS_BY_THREES, false),
    (CHINESE_AND_KANA, false),
];

/// One way of splitting.
pub(super) struct PreTokenizer {
    /// The values of `tokenizer.ggml.pre`.
    names: &'static [&'static str],
    /// Regular expressions, applied one after the other; what they match and what lies between are pieces.
    patterns: &'static [&'static str],
    /// Whether a piece that is a token as it stands is taken whole, without merging.
    pub ignore_merges: bool,
    /// Whether a text begins with BOS where the metadata do not say.
    pub add_bos: bool,
    /// Whether text is brought into Unicode's composed form (NFC) first.
    pub nfc: bool,
}

const fn row(names: &'static [&'static str], patterns: &'static [&'static str]) -> PreTokenizer {
    PreTokenizer { names, patterns, ignore_merges: false, add_bos: false, nfc: false }
}

const TABLE: &[PreTokenizer] = &[
    row(&["default"], &[PUNCTUATION, GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
    row(&["gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais", "exaone4", "trillion"], &[GPT2]),
    row(
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        &[DIGIT, GPT2],
    ),
    row(&["smaug-bpe", "dbrx", "chatglm-bpe"], &[LLAMA3]),
    row(&["stablelm2", "deepseek-r1-qwen", "megrez", "kormo"], &[QWEN2]),
    PreTokenizer { nfc: true, ..row(&["qwen2"], &[QWEN2]) },
    PreTokenizer { nfc: true, ..row(&["qwen35"], &[QWEN35]) },
    row(&["seed-coder"], &[SEED]),
    row(&["gpt-4o", "llama4", "kanana2"], &[GPT4O]),
    row(&["deepseek-v3", "hunyuan-dense"], &[DIGITS_BY_THREES, CHINESE_AND_KANA, DEEPSEEK]),
    PreTokenizer {
        ignore_merges: true,
        add_bos: true,
        ..row(&["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "lfm2", "pixtral", "midm-2.0"], &[LLAMA3])
    },
    PreTokenizer { ignore_merges: true, ..row(&["glm4", "glm5"], &[LLAMA3]) },
    PreTokenizer { ignore_merges: true, add_bos: true, ..row(&["tekken"], &[TEKKEN]) },
];

/// The row of a `tokenizer.ggml.pre`.
pub(super) fn find(name: &str) -> Option<&'static PreTokenizer> {
    TABLE.iter().find(|row| row.names.contains(&name))
}

/// What a `tokenizer.json` says of splitting, as far as the table can tell its rows apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Splitting {
    /// Regular expressions, as in [`PreTokenizer`].
    pub patterns: Vec<String>,
    pub ignore_merges: bool,
    pub nfc: bool,
}

/// The `tokenizer.ggml.pre` of a way of splitting; `None` when it is no row of the table.
///
/// Text that is to be composed (NFC) first takes a row that says so, and else one that splits alike: llama.cpp itself
/// composes nothing, whatever the name.
pub(crate) fn name_of(splitting: &Splitting) -> Option<&'static str> {
    // `default` is what llama.cpp falls back to; no model means it.
    let fits = |row: &&PreTokenizer| {
        row.names != ["default"]
            && row.patterns == splitting.patterns.as_slice()
            && row.ignore_merges == splitting.ignore_merges
    };
    let exact = TABLE.iter().filter(fits).find(|row| row.nfc == splitting.nfc);
    let row = exact.or_else(|| TABLE.iter().filter(fits).find(|row| !row.nfc));
    // Of Qwen's names the first leaves out what it would have composed.
    row.map(|row| if row.names[0] == "stablelm2" { "deepseek-r1-qwen" } else { row.names[0] })
}

/// All names, for messages.
pub(super) fn names() -> String {
    TABLE.iter().flat_map(|row| row.names).copied().collect::<Vec<_>>().join(", ")
}

impl PreTokenizer {
    /// Splits by the patterns, then writes bytes as the characters that the vocabulary uses for them.
    pub fn build(&self) -> tokenizers::Result<PreTokenizerWrapper> {
        let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
        for pattern in self.patterns {
            let pattern = SplitPattern::Regex((*pattern).to_string());
            steps.push(Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?.into());
        }
        steps.push(ByteLevel::new(false, true, false).into());
        Ok(Sequence::new(steps).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _};

    fn split(name: &str, text: &str) -> Vec<String> {
        let mut string = PreTokenizedString::from(text);
        find(name).unwrap().build().unwrap().pre_tokenize(&mut string).unwrap();
        let splits = string.get_splits(OffsetReferential::Original, OffsetType::Byte);
        splits.into_iter().map(|(piece, ..)| piece.replace('Ġ', " ").replace('Ċ', "\n")).collect()
    }

    #[test]
    fn digits_and_spaces_split_as_each_family_does() {
        let text = "It's 1234 \n\n ok";
        assert_eq!(split("gpt-2", text), ["It", "'s", " 1234", " \n\n", " ok"]);
        assert_eq!(split("smollm", text), ["It", "'s", " ", "1", "2", "3", "4", " \n\n", " ok"]);
        assert_eq!(split("llama-bpe", text), ["It", "'s", " ", "123", "4", " \n\n", " ok"]);
        assert_eq!(split("qwen2", text), ["It", "'s", " ", "1", "2", "3", "4", " \n\n", " ok"]);
        assert_eq!(split("tekken", "aB/\n"), ["a", "B", "/\n"]);
    }

    /// Python's `regex` splits alike (`tests/parity/pre_tokenizers.py`).
    #[test]
    fn texts_are_split_as_another_engine_splits_them() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/golden/pre_tokenizers.json")).unwrap();
        let texts = golden["texts"].as_array().unwrap();
        for (name, expected) in golden["pieces"].as_object().unwrap() {
            for (text, expected) in texts.iter().zip(expected.as_array().unwrap()) {
                let text = text.as_str().unwrap();
                let mut string = PreTokenizedString::from(text);
                find(name).unwrap().build().unwrap().pre_tokenize(&mut string).unwrap();
                let splits = string.get_splits(OffsetReferential::Original, OffsetType::Byte);
                let pieces: Vec<&str> = splits.into_iter().map(|(_, (start, end), _)| &text[start..end]).collect();
                assert_eq!(serde_json::json!(pieces), *expected, "{name}: {text:?}");
            }
        }
    }

    #[test]
    fn ways_of_splitting_have_the_names_that_llama_cpp_gives_them() {
        let name = |patterns: &[&str], ignore_merges, nfc| {
            let patterns = patterns.iter().map(|pattern| (*pattern).to_string()).collect();
            name_of(&Splitting { patterns, ignore_merges, nfc })
        };
        assert_eq!(name(&[GPT2], false, false), Some("gpt-2"));
        assert_eq!(name(&[GPT2], false, true), Some("gpt-2"));
        assert_eq!(name(&[DIGIT, GPT2], false, false), Some("smollm"));
        assert_eq!(name(&[LLAMA3], true, false), Some("llama-bpe"));
        assert_eq!(name(&[LLAMA3], false, false), Some("smaug-bpe"));
        assert_eq!(name(&[QWEN2], false, true), Some("qwen2"));
        assert_eq!(name(&[QWEN2], false, false), Some("deepseek-r1-qwen"));
        assert_eq!(name(&[TEKKEN], true, false), Some("tekken"));
        assert_eq!(name(&[QWEN35], false, true), Some("qwen35"));
        assert_eq!(name(&[GPT4O], false, false), Some("gpt-4o"));
        assert_eq!(name(&[SEED], false, false), Some("seed-coder"));
        assert_eq!(name(&[DIGITS_BY_THREES, CHINESE_AND_KANA, DEEPSEEK], false, false), Some("deepseek-v3"));
        assert_eq!(name(&[TEKKEN], false, false), None);
        assert_eq!(name(&[], false, false), None);
    }

    #[test]
    fn every_pattern_compiles() {
        for row in TABLE {
            row.build().unwrap();
        }
    }
}
