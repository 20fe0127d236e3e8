//! Changes of a message, by which its place in a rendering is found.

use crate::data::example::Message;
use crate::data::template::REASONING;
use serde_json::Value as Json;

/// The tools that a message calls: their names and arguments.
pub(super) fn calls(message: &Message) -> impl Iterator<Item = &Json> {
    let calls = message.extra.get("tool_calls").and_then(Json::as_array);
    calls.into_iter().flatten().map(|call| call.get("function").unwrap_or(call))
}

/// The message with another end: of its content, and of its last call of a tool.
pub(super) fn ending_with(message: &Message, letter: char) -> Message {
    let mut message = message.clone();
    let calls = message.extra.get_mut("tool_calls").and_then(Json::as_array_mut);
    let has_call = calls.and_then(|calls| calls.last_mut()).is_some_and(|call| {
        let call = if call.get("function").is_some() { &mut call["function"] } else { call };
        for key in ["name", "arguments"] {
            if let Some(value) = call.get_mut(key) {
                lengthen(value, letter);
            }
        }
        true
    });
    if let Some(content) = message.extra.get_mut("content").filter(|content| !content.is_null()) {
        lengthen(content, letter);
    } else if !(has_call && message.content.trim().is_empty()) {
        message.extra.shift_remove("content");
        message.content = format!("{}{letter}", message.content.trim_end());
    }
    message
}

/// The message with another beginning of its content, behind what it thinks.
pub(super) fn beginning_with(message: &Message, letter: char) -> Message {
    let mut message = message.clone();
    message.extra.shift_remove("content");
    let (thoughts, answer) = message.content.split_at(message.content.rfind("</think>").map_or(0, |at| at + 8));
    message.content = format!("{thoughts}{letter}{}", answer.trim_start());
    message
}

/// The message with another beginning of all that it says, thinks and calls.
pub(super) fn all_beginning_with(message: &Message, letter: char) -> Message {
    let before = |text: &str| {
        // A thought's mark may be what the template looks for, so it stays in front.
        let text = text.trim_start();
        let (mark, rest) = text.split_at(if text.starts_with("<think>") { 7 } else { 0 });
        let behind = rest.rfind("</think>").map_or(0, |at| at + 8);
        let (thoughts, answer) = rest.split_at(behind);
        let thoughts = if thoughts.is_empty() { String::new() } else { format!("{letter}{}", thoughts.trim_start()) };
        format!("{mark}{thoughts}{letter}{}", answer.trim_start())
    };
    let mut changed = message.clone();
    match changed.extra.get_mut("content") {
        Some(Json::Array(parts)) => {
            let text = parts.iter_mut().find_map(|part| part.get_mut("text").filter(|text| text.is_string()));
            if let Some(Json::String(text)) = text {
                *text = before(text);
            }
        }
        Some(_) => {}
        None => changed.content = before(&message.content),
    }
    for key in REASONING {
        if let Some(Json::String(text)) = changed.extra.get_mut(key) {
            *text = format!("{letter}{}", text.trim_start());
        }
    }
    let first = changed.extra.get_mut("tool_calls").and_then(Json::as_array_mut).and_then(|calls| calls.first_mut());
    if let Some(call) = first {
        let call = if call.get("function").is_some() { &mut call["function"] } else { call };
        if let Some(Json::String(name)) = call.get_mut("name") {
            name.insert(0, letter);
        }
    }
    changed
}

/// Puts a letter at the end of every text in it but the kinds of a content's parts.
fn lengthen(value: &mut Json, letter: char) {
    match value {
        Json::String(text) => text.push(letter),
        Json::Array(items) => items.iter_mut().for_each(|item| lengthen(item, letter)),
        Json::Object(fields) => {
            fields.iter_mut().filter(|(key, _)| *key != "type").for_each(|(_, field)| lengthen(field, letter));
        }
        _ => {}
    }
}

/// What a message thinks: its field, or what its text has in `<think>`.
pub(super) fn thoughts(message: &Message) -> Option<&str> {
    let field = REASONING.iter().find_map(|key| message.extra.get(*key)?.as_str());
    let inside = || {
        let (thoughts, _) = message.content.rsplit_once("</think>")?;
        Some(thoughts.split_once("<think>").map_or(thoughts, |(_, thoughts)| thoughts))
    };
    field.or_else(inside).map(str::trim).filter(|thoughts| !thoughts.is_empty())
}

/// Whether no word of an answer is in what the template made of it.
pub(super) fn is_left_out(answer: &Message, rendered: &str) -> bool {
    let parts = answer.extra.get("content").and_then(Json::as_array).into_iter().flatten();
    let parts = parts.filter_map(|part| part["text"].as_str());
    let mut words = parts.chain([answer.content.as_str()]).flat_map(str::split_whitespace).peekable();
    words.peek().is_some() && !words.any(|word| rendered.contains(word))
}
