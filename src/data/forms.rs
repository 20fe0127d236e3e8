//! A conversation in the form that its chat template takes.
//!
//! The row as it is goes first, as transformers renders it. Data and templates differ in three places:
//!
//! - **Names of roles.** A turn goes under the name that the row has for its role (`developer`, `observation`) where the template
//!   asks for that name and then writes what the turn says, and otherwise under the role's own.
//! - **Arguments of a call** are an object, or the JSON text of one (`OpenAI`'s form). Text stays text where the template
//!   writes it as it stands (`+ arguments`, `{{ arguments }}`, a branch `is string`). Where it fails on text, walks over an
//!   object, or writes text as JSON once more (`arguments | tojson`), the template gets the object. An object becomes text
//!   where the template fails on it.
//! - **Content** is text, or a list of parts. A list stays a list where the template walks over the parts. Where it fails on
//!   a list, or prints it as a list, it gets the texts, joined by line ends as vLLM does. Text becomes a list of one part
//!   where the template writes nothing of a text.

use super::example::{Message, Role};
use super::template::{ChatTemplate, Scope, functions};
use crate::error::{Error, Result};
use serde_json::{Value as Json, json};
use std::borrow::Cow;

/// What a template takes as the content of a role's turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Takes {
    Text,
    Lists,
    Both,
}

/// What the arguments of calls become.
#[derive(Clone, Copy, PartialEq)]
enum Arguments {
    AsTheyAre,
    Objects,
    Text,
}

/// What a list of parts becomes.
#[derive(Clone, Copy, PartialEq)]
enum Content {
    AsItIs,
    /// Text, where the template prints the list.
    Joined,
    /// Text everywhere.
    AllJoined,
}

/// The messages in the form that the template takes, and the rendering of them.
///
/// # Errors
/// Of the row as it is, when the template refuses every form; when `arguments` is not JSON, and the template takes objects.
pub(super) fn fitting<'m>(
    template: &ChatTemplate,
    messages: &'m [Message],
    scope: &Scope,
) -> Result<(Cow<'m, [Message]>, String)> {
    let plain = fitting_forms(template, messages, scope);
    let knows = |message: &&Message| message.called.as_ref().is_some_and(|name| template.quotes(name));
    let known: Vec<&Message> = messages.iter().filter(knows).collect();
    if known.is_empty() {
        return plain;
    }
    let named = |message: &Message| match &message.called {
        Some(name) if knows(&message) => message.clone().with("role", name.as_str().into()),
        _ => message.clone(),
    };
    let named: Vec<Message> = messages.iter().map(named).collect();
    let Ok((named, text)) = fitting_forms(template, &named, scope) else { return plain };
    // A template may quote a name that it writes, and leave out a turn of that name.
    let says = |text: &str, message: &Message| match message.content.trim() {
        "" => 0,
        content => text.matches(content).count(),
    };
    let otherwise = plain.as_ref().map_or("", |(_, text)| text.as_str());
    let says_all = known.iter().all(|message| says(&text, message) >= says(otherwise, message));
    if says_all { Ok((Cow::Owned(named.into_owned()), text)) } else { plain }
}

/// [`fitting`], under the names that the roles have.
fn fitting_forms<'m>(
    template: &ChatTemplate,
    messages: &'m [Message],
    scope: &Scope,
) -> Result<(Cow<'m, [Message]>, String)> {
    let messages = suited(template, messages);
    let render = |messages: &[Message]| {
        let values: Vec<_> = messages.iter().map(ChatTemplate::value).collect();
        template.render_values(&values, scope, false)
    };
    let first = render(&messages);
    let has_text = arguments(&messages).any(Json::is_string);
    let has_list = messages.iter().any(|message| parts(message).is_some());
    let has_object = arguments(&messages).any(Json::is_object);
    if !has_text && !has_list && (first.is_ok() || !has_object) {
        return first.map(|text| (messages, text));
    }
    let printed = first.as_deref().unwrap_or_default();
    let mut best: Option<(usize, Cow<'m, [Message]>, String)> = None;
    'forms: for content in [Content::AsItIs, Content::Joined, Content::AllJoined] {
        for form in [Arguments::AsTheyAre, Arguments::Objects, Arguments::Text] {
            let as_it_is = content == Content::AsItIs && form == Arguments::AsTheyAre;
            // Text in place of an object is for templates that fail on the object.
            let is_due = match form {
                Arguments::AsTheyAre => as_it_is || has_list,
                Arguments::Objects => has_text,
                Arguments::Text => has_object && best.is_none(),
            };
            if !is_due || (content != Content::AsItIs && !has_list) {
                continue;
            }
            let changed: Cow<'m, [Message]> = if as_it_is {
                messages.clone()
            } else {
                Cow::Owned(messages.iter().map(|message| changed(message, content, form, printed)).collect())
            };
            let rendered = if as_it_is { first.as_ref().ok().cloned() } else { render(&changed).ok() };
            let Some(text) = rendered else { continue };
            let faults = faults(&changed, &text);
            if best.as_ref().is_none_or(|(least, ..)| faults < *least) {
                best = Some((faults, changed, text));
            }
            if faults == 0 {
                break 'forms;
            }
        }
    }
    let Some((_, messages, text)) = best else { return first.map(|text| (messages, text)) };
    match no_object(&messages, &text) {
        Some(error) => Err(error),
        None => Ok((messages, text)),
    }
}

/// The messages in the form that the template takes, where there is no rendering to look at: what a generation is asked with.
pub(super) fn for_prompt<'m>(template: &ChatTemplate, messages: &'m [Message]) -> Cow<'m, [Message]> {
    suited(template, messages)
}

/// The messages with texts as lists of one part, in the turns of roles of which the template takes lists only, and with lists as
/// text where it takes text only.
fn suited<'m>(template: &ChatTemplate, messages: &'m [Message]) -> Cow<'m, [Message]> {
    let needs = |message: &Message| match template.takes(probe)[message.role as usize] {
        Takes::Lists => !message.content.is_empty() && !message.extra.contains_key("content"),
        Takes::Text => parts(message).is_some(),
        Takes::Both => false,
    };
    if !messages.iter().any(needs) {
        return Cow::Borrowed(messages);
    }
    let suit = |message: &Message| match parts(message) {
        _ if !needs(message) => message.clone(),
        None => as_list(message),
        Some(_) => as_text(message),
    };
    Cow::Owned(messages.iter().map(suit).collect())
}

fn as_list(message: &Message) -> Message {
    message.clone().with("content", json!([{"type": "text", "text": message.content}]))
}

/// The texts of a list, a line each.
fn as_text(message: &Message) -> Message {
    let mut message = message.clone();
    if let Some(Json::Array(parts)) = message.extra.shift_remove("content") {
        let texts: Vec<&str> = parts.iter().filter_map(|part| part["text"].as_str()).collect();
        message.content = texts.join("\n");
    }
    message
}

/// What a template takes of each role, by what it makes of words that no template has. `Both` where that cannot be told.
fn probe(template: &ChatTemplate) -> [Takes; Role::ALL.len()] {
    let said = |role: Role| Message::new(role, format!("qzx{}", role.as_str()));
    let call = || json!({"id": "abcdef123", "type": "function", "function": {"name": "f", "arguments": {}}});
    let scope = Scope::new(&[], &serde_json::Map::new());
    let conversation = |message: &Message, others_as_lists: bool| {
        let other = |role: Role| if others_as_lists { as_list(&said(role)) } else { said(role) };
        let message = message.clone();
        match message.role {
            Role::System => vec![message, other(Role::User), other(Role::Assistant)],
            Role::User => vec![message, other(Role::Assistant)],
            Role::Assistant => vec![other(Role::User), message],
            Role::Tool => vec![
                other(Role::User),
                Message::calls(vec![call()]),
                message.with("tool_call_id", "abcdef123".into()).with("name", "f".into()),
                other(Role::Assistant),
            ],
        }
    };
    let shows = |message: &Message| {
        [false, true].into_iter().any(|others_as_lists| {
            let messages = conversation(message, others_as_lists);
            let values: Vec<_> = messages.iter().map(ChatTemplate::value).collect();
            let text = template.render_values(&values, &scope, false);
            text.is_ok_and(|text| text.contains(&said(message.role).content) && !prints_list(message, &text))
        })
    };
    Role::ALL.map(|role| match (shows(&said(role)), shows(&as_list(&said(role)))) {
        (true, false) => Takes::Text,
        (false, true) => Takes::Lists,
        _ => Takes::Both,
    })
}

/// The `arguments` of all calls.
fn arguments(messages: &[Message]) -> impl Iterator<Item = &Json> {
    functions_called(messages).filter_map(|(_, function)| function.get("arguments"))
}

/// The called functions, each with its turn.
fn functions_called(messages: &[Message]) -> impl Iterator<Item = (usize, &Json)> {
    messages.iter().enumerate().flat_map(|(turn, message)| {
        let calls = message.extra.get("tool_calls").and_then(Json::as_array);
        calls.into_iter().flatten().map(move |call| (turn, call.get("function").unwrap_or(call)))
    })
}

fn parts(message: &Message) -> Option<&Vec<Json>> {
    message.extra.get("content").and_then(Json::as_array)
}

/// Whether a text holds the list of a message's parts as Python prints it, or as JSON.
fn prints_list(message: &Message, text: &str) -> bool {
    parts(message).and_then(|parts| parts.first()).is_some_and(|part| {
        let part = functions::from_json(part);
        text.contains(&functions::repr(&part)) || text.contains(&functions::json(&part))
    })
}

/// How many contents and arguments a rendering has in a form that is not theirs.
fn faults(messages: &[Message], text: &str) -> usize {
    let lists = messages.iter().filter(|message| prints_list(message, text)).count();
    lists + arguments(messages).filter(|arguments| !stands_as_text(arguments, text)).count()
}

/// Whether arguments that are text stand in a rendering as they are.
fn stands_as_text(arguments: &Json, text: &str) -> bool {
    let Some(arguments) = arguments.as_str() else { return true };
    let quoted = functions::json(&minijinja::Value::from(arguments));
    text.contains(arguments.trim()) && !text.contains(&quoted)
}

/// Arguments that must be an object, and are not JSON text of one.
fn no_object(messages: &[Message], text: &str) -> Option<Error> {
    let is_bad = |function: &Json| {
        let arguments = &function["arguments"];
        arguments.is_string() && parsed(arguments).is_none() && !stands_as_text(arguments, text)
    };
    let (turn, function) = functions_called(messages).find(|(_, function)| is_bad(function))?;
    let message = format!(
        "`arguments` of the call of `{}` in turn {} must be an object, or the JSON text of one: the chat template does not \
         take other text",
        function["name"].as_str().unwrap_or_default(),
        turn + 1
    );
    Some(Error::invalid(message).with_help("text of Python's (`{'a': None}`) is not JSON; `json.dumps` writes it"))
}

/// The object whose JSON text this is; empty text is the object without fields.
fn parsed(arguments: &Json) -> Option<Json> {
    match arguments.as_str()?.trim() {
        "" => Some(json!({})),
        text => serde_json::from_str(text).ok().filter(Json::is_object),
    }
}

fn changed(message: &Message, content: Content, form: Arguments, printed: &str) -> Message {
    let mut message = message.clone();
    let is_joined = match content {
        Content::AsItIs => false,
        Content::Joined => prints_list(&message, printed),
        Content::AllJoined => parts(&message).is_some(),
    };
    if is_joined {
        message = as_text(&message);
    }
    let calls = message.extra.get_mut("tool_calls").and_then(Json::as_array_mut);
    for call in calls.into_iter().flatten() {
        let call = if call.get("function").is_some() { &mut call["function"] } else { call };
        let Some(arguments) = call.get_mut("arguments") else { continue };
        let new = match form {
            Arguments::Objects => parsed(arguments),
            Arguments::Text if arguments.is_object() => {
                Some(Json::from(functions::json(&functions::from_json(arguments))))
            }
            Arguments::AsTheyAre | Arguments::Text => None,
        };
        if let Some(new) = new {
            *arguments = new;
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(source: &str, called: &str, role: Role) -> String {
        let template = ChatTemplate::at(source, None, None, 0).unwrap();
        let message = Message { called: Some(called.to_string()), ..Message::new(role, "qzx") };
        let messages = [message, Message::assistant("a")];
        fitting(&template, &messages, &Scope::new(&[], &serde_json::Map::new())).unwrap().1
    }

    #[test]
    fn a_turn_goes_under_the_name_that_the_template_asks_for() {
        let asks = "{% for m in messages %}{% if m.role in ['system', 'developer'] %}<{{ m.role }}>{% endif %}{{ m.content }}{% endfor %}";
        assert_eq!(rendered(asks, "developer", Role::System), "<developer>qzxa");
        let asks_not = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}";
        assert_eq!(rendered(asks_not, "developer", Role::System), "<system>qzx<assistant>a");
        // It writes the name, and knows no turn of it.
        let writes =
            "{% for m in messages %}{% if m.role == 'assistant' %}{{ 'model' }}{{ m.content }}{% endif %}{% endfor %}";
        assert_eq!(rendered(writes, "model", Role::Assistant), "modelqzxmodela");
    }
}
