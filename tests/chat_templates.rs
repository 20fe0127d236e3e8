//! Chat templates as they are published, held against what transformers makes of them, and what is learnt of each.
//!
//! `tests/parity/chat_templates.py` writes the goldens.

use crate::support::{golden, json};
use equipoise::data::{ChatTemplate, Encoder, Example, IGNORED, Message, Role, Sequence, TrainOnTurns};
use serde_json::Value;
use std::path::PathBuf;
use tokenizers::{AddedToken, Tokenizer};

/// A family's template, and what transformers made of it.
struct Family {
    name: String,
    golden: Value,
    encoder: Encoder,
}

impl Family {
    fn all() -> Vec<Self> {
        let files = std::fs::read_dir(golden("chat_templates")).unwrap().map(|entry| entry.unwrap().path());
        let mut templates: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|e| e == "jinja")).collect();
        templates.sort();
        templates.into_iter().map(|path| Self::load(&path)).collect()
    }

    fn named(name: &str) -> Self {
        Self::load(&golden(&format!("chat_templates/{name}.jinja")))
    }

    fn load(path: &std::path::Path) -> Self {
        let golden = json(&path.with_extension("json"));
        let (bos, eos) = (golden["bos"].as_str(), golden["eos"].as_str());
        let source = std::fs::read_to_string(path).unwrap();
        let template = ChatTemplate::at(&source, bos, eos, golden["now"].as_u64().unwrap()).unwrap();
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/gene_ontology/base/tokenizer.json");
        let mut tokenizer = Tokenizer::from_file(file).unwrap();
        let tokens = |key: &str, special: bool| -> Vec<AddedToken> {
            let texts = golden[key].as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_string());
            texts.map(|text| AddedToken::from(text, special)).collect()
        };
        tokenizer.add_special_tokens(tokens("special", true)).unwrap();
        tokenizer.add_tokens(tokens("added", false)).unwrap();
        let id = |text: Option<&str>| text.map(|text| (text.to_string(), tokenizer.token_to_id(text).unwrap()));
        let (bos, eos) = (id(bos), id(eos));
        let encoder = Encoder::new(tokenizer, Some(template), eos, bos, false).unwrap();
        Self { name: path.file_stem().unwrap().to_str().unwrap().to_string(), golden, encoder }
    }

    fn cases(&self) -> Vec<Case> {
        self.golden["cases"].as_array().unwrap().iter().map(Case::read).collect()
    }

    /// What is learnt of a case, run by run.
    fn learnt(&self, case: &str) -> Vec<String> {
        let case = self.cases().into_iter().find(|one| one.name == case && !one.prompt).unwrap();
        let sequence = self.encoder.encode(&case.example()).unwrap();
        segments(&self.encoder, &sequence)
    }
}

fn segments(encoder: &Encoder, sequence: &Sequence) -> Vec<String> {
    let segments = encoder.segments(sequence).unwrap();
    segments.into_iter().filter(|(_, learnt)| *learnt).map(|(text, _)| text).collect()
}

/// A conversation, and what transformers made of it.
struct Case {
    name: String,
    messages: Vec<Message>,
    tools: Vec<Value>,
    prompt: bool,
    expected: Value,
}

impl Case {
    fn read(case: &Value) -> Self {
        Self {
            name: case["name"].as_str().unwrap().to_string(),
            messages: case["messages"].as_array().unwrap().iter().map(message).collect(),
            tools: case["tools"].as_array().cloned().unwrap_or_default(),
            prompt: case["add_generation_prompt"].as_bool().unwrap(),
            expected: case.clone(),
        }
    }

    fn example(&self) -> Example {
        Example::Chat { messages: self.messages.clone(), tools: self.tools.clone() }
    }
}

fn message(json: &Value) -> Message {
    let role = Role::from_name(json["role"].as_str().unwrap()).unwrap();
    let mut message = Message::new(role, json["content"].as_str().unwrap_or_default());
    for (key, value) in json.as_object().unwrap() {
        if key != "role" && !(key == "content" && value.is_string()) {
            message = message.with(key, value.clone());
        }
    }
    message
}

#[test]
fn conversations_are_rendered_and_tokenized_as_transformers_does() {
    let mut differing = Vec::new();
    for family in Family::all() {
        for case in family.cases() {
            let rendered = family.encoder.template().unwrap().render(&case.messages, &case.tools, case.prompt);
            let expected = &case.expected;
            let agrees = match (expected["text"].as_str(), expected["refused"].as_str(), &rendered) {
                (Some(text), _, Ok(rendered)) => {
                    let encoding = family.encoder.tokenizer().encode(text, false).unwrap();
                    text == rendered && serde_json::json!(encoding.get_ids()) == expected["ids"]
                }
                (None, Some(reason), Err(error)) => error.to_string().ends_with(reason),
                (None, None, result) => result.is_err(),
                _ => false,
            };
            if !agrees {
                let expected = [&expected["text"], &expected["refused"], &expected["fails"]];
                differing.push(format!("{}, {}, {}:\n{expected:?}\n{rendered:?}", family.name, case.name, case.prompt));
            }
        }
    }
    assert!(differing.is_empty(), "{}", differing.join("\n\n"));
}
