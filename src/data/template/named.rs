//! Chat templates that a recipe can name in place of the base's, for bases that have none.
//!
//! Each is a file of its own in `named/`, and a line in [`NAMED`]. For plain conversations they give the text of the published
//! templates of these names; tools they refuse.

use crate::error::{Error, Result};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The longest template file that is read.
const MAX_BYTES: u64 = 1 << 20;

/// A chat template with a name.
#[derive(Debug)]
pub struct Named {
    /// The name in recipes.
    pub name: &'static str,
    /// The template, in Jinja.
    pub source: &'static str,
    /// What it writes that a tokenizer should know as single tokens.
    pub marks: &'static [&'static str],
}

macro_rules! named {
    ($($name:literal: [$($mark:literal),*],)*) => {
        /// All of them.
        pub const NAMED: &[Named] = &[$(
            Named { name: $name, source: include_str!(concat!("named/", $name, ".jinja")), marks: &[$($mark),*] },
        )*];
    };
}

named! {
    "chatml": ["<|im_start|>", "<|im_end|>"],
    "llama3": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "mistral": ["[INST]", "[/INST]"],
    "gemma": ["<start_of_turn>", "<end_of_turn>"],
    "phi3": ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"],
    "qwen3": ["<|im_start|>", "<|im_end|>", "<think>", "</think>"],
    "mistral-v7-tekken": ["[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]"],
    "phi4": ["<|im_start|>", "<|im_sep|>", "<|im_end|>"],
    "granite": ["<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"],
    "zephyr": [],
    "alpaca": [],
    "vicuna": [],
}

/// The template of this name.
pub fn find(name: &str) -> Option<&'static Named> {
    NAMED.iter().find(|named| named.name == name)
}

/// The source of the recipe's `data.chat_template`: a name, or the path of a file. A file is Jinja, or JSON with
/// `chat_template`, as `tokenizer_config.json` has it.
///
/// # Errors
/// When it is neither a name nor a file that can be read, with the names that are near; when the file is over 1 MiB, not
/// UTF-8, empty, or JSON without a template.
pub fn chat_template_source(setting: &str) -> Result<String> {
    if let Some(named) = find(setting) {
        return Ok(named.source.to_string());
    }
    let path = Path::new(setting);
    if !path.exists() {
        return Err(unknown(setting));
    }
    let unreadable = |error: std::io::Error| Error::file(path, format!("cannot be read: {error}"));
    let mut text = String::new();
    let file = File::open(path).map_err(unreadable)?;
    if file.metadata().map_err(unreadable)?.len() > MAX_BYTES {
        return Err(Error::file(path, "is over 1 MiB, which no chat template is"));
    }
    file.take(MAX_BYTES).read_to_string(&mut text).map_err(unreadable)?;
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json")) {
        text = from_json(path, &text)?;
    }
    if text.trim().is_empty() {
        return Err(Error::file(path, "is empty; a chat template in Jinja is expected"));
    }
    Ok(text)
}

/// The template in a `tokenizer_config.json`; of several the one that is named `default`.
fn from_json(path: &Path, text: &str) -> Result<String> {
    let json: serde_json::Value =
        serde_json::from_str(text).map_err(|error| Error::file(path, format!("is not valid JSON: {error}")))?;
    let found = &json["chat_template"];
    let default = found.as_array().and_then(|all| all.iter().find(|one| one["name"] == "default"));
    let found = default.map_or(found, |one| &one["template"]);
    found.as_str().map(str::to_string).ok_or_else(|| Error::file(path, "holds no `chat_template`"))
}

fn unknown(setting: &str) -> Error {
    let names: Vec<String> = NAMED.iter().map(|named| format!("`{}`", named.name)).collect();
    let near = |named: &&Named| strsim::jaro_winkler(named.name, &setting.to_lowercase()) > 0.8;
    let near = NAMED.iter().find(near).map(|named| format!("did you mean `{}`? ", named.name)).unwrap_or_default();
    let message = format!("data.chat_template: `{setting}` is no chat template's name, and there is no such file");
    Error::invalid(message)
        .with_help(format!("{near}the names are {}; or give the path of a Jinja file", names.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{ChatTemplate, Message, Role};

    fn render(name: &str, system: bool, prompt: bool) -> String {
        let template = ChatTemplate::at(&chat_template_source(name).unwrap(), Some("<s>"), Some("</s>"), 0).unwrap();
        let mut messages = vec![Message::user("q"), Message::assistant("a"), Message::user("r")];
        if system {
            messages.insert(0, Message::new(Role::System, "s"));
        }
        if !prompt {
            messages.push(Message::assistant("b"));
        }
        template.render(&messages, &[], prompt).unwrap()
    }

    /// As the templates that are published under these names write it.
    #[test]
    fn plain_conversations_are_those_of_the_published_templates() {
        let expected = [
            (
                "chatml",
                "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n<|im_start|>user\nr<|im_end|>\n",
                "<|im_start|>assistant\n",
                "b<|im_end|>\n",
            ),
            (
                "llama3",
                "<s><|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\na<|eot_id|>\
                 <|start_header_id|>user<|end_header_id|>\n\nr<|eot_id|>",
                "<|start_header_id|>assistant<|end_header_id|>\n\n",
                "b<|eot_id|>",
            ),
            ("mistral", "<s>[INST] q[/INST] a</s>[INST] r[/INST]", "", " b</s>"),
            (
                "gemma",
                "<s><start_of_turn>user\nq<end_of_turn>\n<start_of_turn>model\na<end_of_turn>\n<start_of_turn>user\nr<end_of_turn>\n",
                "<start_of_turn>model\n",
                "b<end_of_turn>\n",
            ),
            (
                "phi3",
                "<|user|>\nq<|end|>\n<|assistant|>\na<|end|>\n<|user|>\nr<|end|>\n",
                "<|assistant|>\n",
                "b<|end|>\n</s>",
            ),
            (
                "qwen3",
                "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n<|im_start|>user\nr<|im_end|>\n",
                "<|im_start|>assistant\n<think>\n\n</think>\n\n",
                "b<|im_end|>\n",
            ),
            ("mistral-v7-tekken", "<s>[INST]q[/INST]a</s>[INST]r[/INST]", "", "b</s>"),
            (
                "phi4",
                "<|im_start|>user<|im_sep|>q<|im_end|><|im_start|>assistant<|im_sep|>a<|im_end|><|im_start|>user<|im_sep|>r<|im_end|>",
                "<|im_start|>assistant<|im_sep|>",
                "b<|im_end|>",
            ),
            (
                "granite",
                "<|start_of_role|>user<|end_of_role|>q<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>a<|end_of_text|>\n\
                 <|start_of_role|>user<|end_of_role|>r<|end_of_text|>\n",
                "<|start_of_role|>assistant<|end_of_role|>",
                "b<|end_of_text|>\n",
            ),
            ("zephyr", "<|user|>\nq</s>\n<|assistant|>\na</s>\n<|user|>\nr</s>\n", "<|assistant|>\n", "b</s>\n"),
            (
                "alpaca",
                "<s>Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n\
                 ### Instruction:\nq\n\n### Response:\na</s>\n\n### Instruction:\nr\n\n### Response:\n",
                "",
                "b</s>",
            ),
            (
                "vicuna",
                "<s>A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, \
                 detailed, and polite answers to the user's questions. USER: q ASSISTANT: a</s>USER: r ASSISTANT:",
                "",
                " b</s>",
            ),
        ];
        assert_eq!(expected.len(), NAMED.len());
        for (name, before, prompt, answer) in expected {
            assert_eq!(render(name, false, true), format!("{before}{prompt}"), "{name}");
            assert_eq!(render(name, false, false), format!("{before}{prompt}{answer}"), "{name}");
        }
    }

    #[test]
    fn system_messages_stand_where_the_families_have_them() {
        for (name, beginning) in [
            ("chatml", "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq"),
            ("llama3", "<s><|start_header_id|>system<|end_header_id|>\n\ns<|eot_id|><|start_header_id|>user"),
            ("gemma", "<s><start_of_turn>user\ns\n\nq<end_of_turn>\n"),
            ("phi3", "<|system|>\ns<|end|>\n<|user|>\nq"),
            ("qwen3", "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq"),
            ("mistral-v7-tekken", "<s>[SYSTEM_PROMPT]s[/SYSTEM_PROMPT][INST]q[/INST]a</s>"),
            ("phi4", "<|im_start|>system<|im_sep|>s<|im_end|><|im_start|>user<|im_sep|>q"),
            (
                "granite",
                "<|start_of_role|>system<|end_of_role|>s<|end_of_text|>\n<|start_of_role|>user<|end_of_role|>q",
            ),
            ("zephyr", "<|system|>\ns</s>\n<|user|>\nq"),
            ("mistral", "<s>[INST] s\n\nq[/INST] a</s>[INST] r[/INST]"),
            ("alpaca", "<s>s\n\n### Instruction:\nq"),
            ("vicuna", "<s>s USER: q ASSISTANT: a</s>"),
        ] {
            let text = render(name, true, true);
            assert!(text.starts_with(beginning), "{name}: {text}");
        }
    }

    /// Qwen3's shows a thought in the last answer only, wherever it comes from.
    #[test]
    fn thoughts_of_qwen3_stand_before_the_last_answer_only() {
        let template = ChatTemplate::at(&chat_template_source("qwen3").unwrap(), None, None, 0).unwrap();
        let thinking = "<think>\nhm\n</think>\n\na";
        let mut messages = vec![Message::user("q"), Message::assistant(thinking)];
        let last = template.render(&messages, &[], false).unwrap();
        assert_eq!(last, format!("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n{thinking}<|im_end|>\n"));
        messages[1] = Message::assistant("a");
        messages[1].extra.insert("reasoning_content".into(), "hm".into());
        assert_eq!(template.render(&messages, &[], false).unwrap(), last);
        messages[1] = Message::assistant(thinking);
        messages.push(Message::user("r"));
        let before = template.render(&messages, &[], false).unwrap();
        assert!(before.contains("<|im_start|>assistant\na<|im_end|>\n"), "{before}");
    }

    #[test]
    fn what_a_template_cannot_say_is_refused() {
        for named in NAMED {
            let template = ChatTemplate::at(named.source, None, None, 0).unwrap();
            let call = serde_json::json!({"function": {"name": "f", "arguments": {}}});
            let error = template.render(&[Message::user("q"), Message::calls(vec![call])], &[], false).unwrap_err();
            assert!(error.to_string().contains("no tools"), "{}: {error}", named.name);
            assert!(template.render(&[Message::user("q")], &[serde_json::json!({})], true).is_err());
        }
        for name in ["mistral", "mistral-v7-tekken", "gemma"] {
            let template = ChatTemplate::at(&chat_template_source(name).unwrap(), None, None, 0).unwrap();
            let error = template.render(&[Message::user("q"), Message::user("q")], &[], false).unwrap_err();
            assert!(error.to_string().contains("must take turns"), "{error}");
        }
    }

    #[test]
    fn a_setting_is_a_name_or_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
        std::fs::write(path("a.jinja"), "{{ x }}").unwrap();
        std::fs::write(path("b.json"), r#"{"chat_template": [{"name": "default", "template": "{{ y }}"}]}"#).unwrap();
        std::fs::write(path("c.json"), "{}").unwrap();
        std::fs::write(path("long.jinja"), "x".repeat(MAX_BYTES as usize + 1)).unwrap();
        assert_eq!(chat_template_source(&path("a.jinja")).unwrap(), "{{ x }}");
        assert_eq!(chat_template_source(&path("b.json")).unwrap(), "{{ y }}");
        assert!(chat_template_source(&path("c.json")).unwrap_err().to_string().contains("holds no `chat_template`"));
        assert!(chat_template_source(&path("long.jinja")).unwrap_err().to_string().contains("1 MiB"));
        let error = chat_template_source("lama3").unwrap_err();
        assert!(error.help().unwrap().starts_with("did you mean `llama3`? the names are `chatml`,"), "{error:?}");
    }
}
