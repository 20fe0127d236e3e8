//! What an id of the Hub says: `general.base_model.*`.

use candle_core::quantized::gguf_file::Value;
use std::path::Path;

/// The keys that name the model that a file was made from; none when `base` is not an id of the Hub.
pub(super) fn base_model(base: &str) -> Vec<(String, Value)> {
    let Some((organization, name)) = split(base) else { return Vec::new() };
    let key = |key: &str| format!("general.base_model.{key}");
    let text = |text: String| Value::String(text);
    vec![
        (key("count"), Value::U32(1)),
        (key("0.name"), text(title(name))),
        (key("0.organization"), text(title(organization))),
        (key("0.repo_url"), text(format!("https://huggingface.co/{organization}/{name}"))),
    ]
}

/// The two parts of `organization/name`, without a revision; `None` for paths.
fn split(base: &str) -> Option<(&str, &str)> {
    if Path::new(base).exists() {
        return None;
    }
    let (organization, name) = base.split('@').next()?.split_once('/')?;
    let allowed = |part: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        !part.is_empty() && !part.starts_with('.') && part.chars().all(plain)
    };
    (allowed(organization) && allowed(name)).then_some((organization, name))
}

/// An id as a title: words for hyphens, capitals for words in small letters; versions and numbers stay.
fn title(id: &str) -> String {
    let word = |word: &str| {
        let small = word.chars().any(char::is_alphabetic) && !word.chars().any(char::is_uppercase);
        let version = word.strip_prefix('v').is_some_and(|rest| {
            rest.split('.').all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
        });
        if !small || version || word.starts_with(|c: char| c.is_ascii_digit()) {
            return word.to_string();
        }
        let mut before = ' ';
        let capital = |c: char| {
            let begins = !before.is_alphabetic();
            before = c;
            if begins { c.to_ascii_uppercase() } else { c }
        };
        word.chars().map(capital).collect()
    };
    id.split(['-', ' ']).filter(|part| !part.is_empty()).map(word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the titles are was found with llama.cpp's `gguf.Metadata.id_to_title`.
    #[test]
    fn ids_become_titles_as_llama_cpp_writes_them() {
        for (id, expected) in [
            ("SmolLM2-135M-Instruct", "SmolLM2 135M Instruct"),
            ("tinystories-656k-bf16", "Tinystories 656k Bf16"),
            ("mistral-7b-v0.1", "Mistral 7b v0.1"),
            ("qwen2.5-0.5b", "Qwen2.5 0.5b"),
            ("a1b_c-d", "A1B_C D"),
        ] {
            assert_eq!(title(id), expected);
        }
    }

    #[test]
    fn paths_are_no_ids() {
        let keys = |base: &str| base_model(base).into_iter().map(|(key, _)| key).collect::<Vec<_>>();
        assert_eq!(keys("org/model@main").len(), 4);
        for path in ["model", "/a/b", "./model", "../x", "a/b/c", "a/", "org/b c", ""] {
            assert!(keys(path).is_empty(), "{path}");
        }
        let Value::String(url) = base_model("org/model@v1").pop().unwrap().1 else { panic!() };
        assert_eq!(url, "https://huggingface.co/org/model");
    }
}
