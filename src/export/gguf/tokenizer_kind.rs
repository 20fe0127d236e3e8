//! Which of llama.cpp's tokenizers a `tokenizer.json` is.

use super::tokenizer::TokenizerJson;
use crate::weights::gguf::{GPT2, Splitting, pre_tokenizer_name};
use serde_json::Value as Json;

/// What to do where llama.cpp cannot follow.
pub(super) const REFUSED_HELP: &str = "export the merged model instead (`--to merged`): servers that read Hugging Face \
                                       folders take any tokenizer.json";

/// Which tokenizer llama.cpp is to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `gpt2`: bytes written as characters, split as `tokenizer.ggml.pre` says.
    ByteLevel { pre: &'static str },
    /// `llama`: spaces written as `▁`, bytes of what has no piece.
    SentencePiece { space_prefix: bool },
}

impl Kind {
    /// Finds it, or says what llama.cpp does not know.
    pub fn of(json: &TokenizerJson) -> Result<Self, String> {
        if json.model.r#type != "BPE" {
            return Err(format!(
                "is of the kind `{}`; llama.cpp's llama and qwen take byte-pair encoding",
                json.model.r#type
            ));
        }
        let affix = |affix: &Option<String>| affix.as_ref().is_some_and(|affix| !affix.is_empty());
        if affix(&json.model.continuing_subword_prefix) || affix(&json.model.end_of_word_suffix) {
            return Err("marks the middle or the end of words, which llama.cpp does not know".into());
        }
        let steps = steps(&json.pre_tokenizer, "pretokenizers");
        if steps.last().is_some_and(|step| kind(step) == "ByteLevel") {
            return byte_level(json, &steps);
        }
        sentence_piece(json, &steps)
    }
}

/// The parts of a sequence, or the one step that there is.
fn steps<'a>(step: &'a Json, nested: &str) -> Vec<&'a Json> {
    match step.get(nested).and_then(Json::as_array) {
        Some(inner) if kind(step) == "Sequence" => inner.iter().flat_map(|inner| steps(inner, nested)).collect(),
        _ if step.is_null() => Vec::new(),
        _ => vec![step],
    }
}

fn kind(step: &Json) -> &str {
    step.get("type").and_then(Json::as_str).unwrap_or_default()
}

fn flag(step: &Json, key: &str, default: bool) -> bool {
    step.get(key).and_then(Json::as_bool).unwrap_or(default)
}

fn unknown(step: &Json) -> String {
    format!("splits text in a way that llama.cpp knows no such pre-tokenizer for: {step}")
}

fn byte_level(json: &TokenizerJson, steps: &[&Json]) -> Result<Kind, String> {
    let mut patterns = Vec::new();
    for (position, step) in steps.iter().enumerate() {
        match kind(step) {
            "ByteLevel" if position + 1 == steps.len() && !flag(step, "add_prefix_space", true) => {
                patterns.extend(flag(step, "use_regex", true).then(|| GPT2.to_string()));
            }
            "Digits" => patterns.push(if flag(step, "individual_digits", false) { r"\p{N}" } else { r"\p{N}+" }.into()),
            "Split" => patterns.push(pattern(step).ok_or_else(|| unknown(step))?),
            _ => return Err(unknown(step)),
        }
    }
    let nfc = match steps_of_normalizer(json).as_slice() {
        [] => false,
        ["NFC"] => true,
        other => {
            return Err(format!("changes text ({}) before it is split, which llama.cpp does not do", other.join(", ")));
        }
    };
    let splitting = Splitting { patterns, ignore_merges: json.model.ignore_merges, nfc };
    let pre = pre_tokenizer_name(&splitting).ok_or_else(|| unknown(&json.pre_tokenizer))?;
    Ok(Kind::ByteLevel { pre })
}

fn steps_of_normalizer(json: &TokenizerJson) -> Vec<&str> {
    steps(&json.normalizer, "normalizers").into_iter().map(kind).collect()
}

/// The regular expression of a split that keeps all pieces.
fn pattern(step: &Json) -> Option<String> {
    let pattern = step.get("pattern")?.get("Regex")?.as_str()?;
    let behaviour = step.get("behavior").and_then(Json::as_str)?;
    match (behaviour, flag(step, "invert", false)) {
        ("Isolated", _) => Some(pattern.to_string()),
        // What does not match is removed; patterns that end so match everything.
        ("Removed", true) if pattern.ends_with(r"|\s+") => Some(pattern.to_string()),
        _ => None,
    }
}

fn sentence_piece(json: &TokenizerJson, steps_of_text: &[&Json]) -> Result<Kind, String> {
    let wrong = || {
        let (normalizer, pre) = (&json.normalizer, &json.pre_tokenizer);
        format!("is neither byte-level nor SentencePiece's: its normalizer is {normalizer}, its pre-tokenizer {pre}")
    };
    if !json.model.byte_fallback || json.model.ignore_merges {
        return Err(wrong());
    }
    let normalizers = steps(&json.normalizer, "normalizers");
    let is_space = |step: &Json| {
        kind(step) == "Replace" && step["pattern"]["String"] == " " && step.get("content").is_some_and(|to| to == "▁")
    };
    let prepends = |step: &Json| kind(step) == "Prepend" && step["prepend"] == "▁";
    match (normalizers.as_slice(), steps_of_text) {
        ([prefix, space], []) if prepends(prefix) && is_space(space) => Ok(Kind::SentencePiece { space_prefix: true }),
        ([space], []) if is_space(space) => Ok(Kind::SentencePiece { space_prefix: false }),
        ([], [step]) if kind(step) == "Metaspace" && step["replacement"] == "▁" && !flag(step, "split", true) => {
            Ok(Kind::SentencePiece { space_prefix: step["prepend_scheme"] != "never" })
        }
        // Gemma splits at spaces of which its normalizer leaves none.
        ([space], [step]) if is_space(space) && kind(step) == "Split" && step["pattern"]["String"] == " " => {
            Ok(Kind::SentencePiece { space_prefix: false })
        }
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn find(normalizer: &Json, pre_tokenizer: &Json, model: &Json) -> Result<Kind, String> {
        let mut all = json!({"type": "BPE", "merges": []});
        all.as_object_mut().unwrap().extend(model.as_object().unwrap().clone());
        let json = json!({"added_tokens": [], "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
            "post_processor": null, "model": all});
        Kind::of(&serde_json::from_value(json).unwrap())
    }

    #[test]
    fn byte_level_tokenizers_get_the_name_of_how_they_split() {
        let bytes = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": regex});
        let sequence = |steps: Vec<Json>| json!({"type": "Sequence", "pretokenizers": steps});
        let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        let pre = |found: Result<Kind, String>| match found {
            Ok(Kind::ByteLevel { pre }) => pre.to_string(),
            other => format!("{other:?}"),
        };
        let llama3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        let qwen2 = llama3.replace("{1,3}", "");
        let digits = json!({"type": "Digits", "individual_digits": true});
        assert_eq!(pre(find(&json!(null), &bytes(true), &json!({}))), "gpt-2");
        assert_eq!(pre(find(&json!(null), &sequence(vec![digits, bytes(true)]), &json!({}))), "smollm");
        let llama = sequence(vec![split(llama3), bytes(false)]);
        assert_eq!(pre(find(&json!(null), &llama, &json!({"ignore_merges": true}))), "llama-bpe");
        let qwen = sequence(vec![split(&qwen2), bytes(false)]);
        assert_eq!(pre(find(&json!({"type": "NFC"}), &qwen, &json!({}))), "qwen2");
        let unlike = sequence(vec![split(r"\p{N}{1,2}|\s+"), bytes(false)]);
        let message = pre(find(&json!(null), &unlike, &json!({})));
        assert!(message.contains("knows no such pre-tokenizer") && message.contains("{1,2}"), "{message}");
        assert!(pre(find(&json!({"type": "Lowercase"}), &bytes(true), &json!({}))).contains("(Lowercase)"));
        let prefixed = json!({"type": "ByteLevel", "add_prefix_space": true, "use_regex": true});
        assert!(pre(find(&json!(null), &prefixed, &json!({}))).contains("no such pre-tokenizer"));
    }

    #[test]
    fn sentencepieces_are_known_by_their_spaces() {
        let fallback = || json!({"byte_fallback": true});
        let prepend = json!({"type": "Prepend", "prepend": "▁"});
        let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        let both = json!({"type": "Sequence", "normalizers": [prepend, replace]});
        assert_eq!(find(&both, &json!(null), &fallback()), Ok(Kind::SentencePiece { space_prefix: true }));
        assert_eq!(find(&replace, &json!(null), &fallback()), Ok(Kind::SentencePiece { space_prefix: false }));
        let metaspace =
            |split: bool| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": split});
        assert_eq!(find(&json!(null), &metaspace(false), &fallback()), Ok(Kind::SentencePiece { space_prefix: true }));
        assert!(find(&json!(null), &metaspace(true), &fallback()).unwrap_err().contains("neither byte-level nor"));
        assert!(find(&json!(null), &json!(null), &json!({})).unwrap_err().contains("neither byte-level nor"));
        assert!(find(&json!(null), &json!(null), &json!({"type": "WordPiece"})).unwrap_err().contains("`WordPiece`"));
        assert!(
            find(&both, &json!(null), &json!({"end_of_word_suffix": "</w>"})).unwrap_err().contains("end of words")
        );
    }
}
