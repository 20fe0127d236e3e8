//! Chat templates as they are published, compared with what transformers makes of them, and what is learnt of each.
//!
//! `tests/parity/chat_templates.py` writes the goldens.

use crate::support::{golden, json};
use equipoise::data::{ChatTemplate, Encoder, Example, IGNORED, Message, Role, Sequence, TrainOnTurns, named};
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
}

/// What is learnt, run by run.
fn learnt(encoder: &Encoder, sequence: &Sequence) -> Vec<String> {
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
        Example::Chat {
            messages: self.messages.clone(),
            tools: self.tools.clone(),
            template_kwargs: serde_json::Map::new(),
        }
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

/// What is learnt of each case that ends with an answer: every run between `⟦` and `⟧`, or why there is none.
///
/// These were read one by one: an answer, what it thinks and calls where the template keeps that, and the token that ends it.
#[test]
fn what_is_learnt_is_the_answers_and_their_ends() {
    for family in Family::all() {
        let mut told = String::new();
        for case in family.cases() {
            let is_answered = case.messages.last().is_some_and(|message| message.role == Role::Assistant);
            if case.prompt || !is_answered || case.expected["text"].is_null() {
                continue;
            }
            told.extend(["# ", &case.name, "\n"]);
            match family.encoder.encode(&case.example()) {
                Ok(sequence) => told.extend(learnt(&family.encoder, &sequence).iter().map(|run| format!("⟦{run}⟧\n"))),
                Err(error) => told.extend([&error.to_string(), "\n"]),
            }
        }
        insta::assert_snapshot!(format!("chat_template_{}", family.name), told);
    }
}

/// With `{% generation %}` blocks: the tokens that transformers' `return_assistant_tokens_mask` marks, but one that begins
/// before the block, which only there counts as the answer's.
#[test]
fn generation_blocks_are_learnt_as_transformers_marks_them() {
    for name in ["qwen3_training", "gemma3_training"] {
        let (family, mut compared) = (Family::named(name), 0);
        for case in family.cases() {
            let Some(mask) = case.expected["mask"].as_str().filter(|mask| mask.contains('1')) else { continue };
            // A template that writes nothing of a list gets its text here.
            if name == "qwen3_training" && case.name == "parts in place of text" {
                continue;
            }
            let sequence = family.encoder.encode(&case.example()).unwrap();
            let ours =
                sequence.labels.iter().map(|&label| if label == IGNORED { '0' } else { '1' }).collect::<String>();
            assert_eq!(ours, mask, "{name}, {}", case.name);
            compared += 1;
        }
        assert!(compared >= 4, "{compared}");
    }
}

#[test]
fn the_last_answer_alone_is_learnt_where_the_recipe_says_so() {
    for family in Family::all() {
        let case = family.cases().into_iter().find(|case| case.name == "several turns" && !case.prompt).unwrap();
        let sequence = family.encoder.encode(&case.example()).unwrap();
        let (name, all) = (&family.name, learnt(&family.encoder, &sequence));
        let encoder = family.encoder.with_turns(TrainOnTurns::Last);
        let last = learnt(&encoder, &encoder.encode(&case.example()).unwrap());
        assert_eq!(last[..], all[2..], "{name}");
        assert_eq!(last.len(), 1, "{name}");
    }
}

#[test]
fn named_templates_write_plain_conversations_as_the_published_ones_do() {
    for (name, published, with_default_system) in
        [("llama3", "llama3", false), ("gemma", "gemma3", false), ("phi3", "phi3", false), ("chatml", "smollm2", true)]
    {
        let (family, mut compared) = (Family::named(published), 0);
        let (bos, eos) = (family.golden["bos"].as_str(), family.golden["eos"].as_str());
        let template = ChatTemplate::at(&named::chat_template_source(name).unwrap(), bos, eos, 0).unwrap();
        let plain = ["several turns", "a system message and several turns", "white space around answers"];
        for case in family.cases().iter().filter(|case| plain.contains(&case.name.as_str())) {
            if with_default_system && case.messages[0].role != Role::System {
                continue;
            }
            let text = template.render(&case.messages, &[], case.prompt).unwrap();
            assert_eq!(Some(text.as_str()), case.expected["text"].as_str(), "{name}, {}", case.name);
            compared += 1;
        }
        assert!(compared >= 2, "{name}");
    }
}
