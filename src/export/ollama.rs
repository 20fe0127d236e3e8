//! Ollama's Modelfile: the chat template in Go's template language, and the stop tokens.
//!
//! A template in Jinja cannot be translated, so it is tried: conversations of known texts are rendered, and what stands between
//! the texts is what the Go template has to write. (Texts with white space around them are not tried: Ollama cannot trim.) The result is compared with more conversations, and given up where one of
//! them differs in a byte: Ollama then reads the chat template of the GGUF file, for the families that it knows.

use super::{Job, Output, gguf};
use crate::data::{ChatTemplate, Message, Role};
use crate::error::{Error, Result};
use std::fmt::Write as _;

/// Two days: a template that prints the date says something else on each.
const DAYS: [u64; 2] = [1_700_000_000, 1_750_000_000];

/// What a chat template is rendered with.
#[derive(Debug, Clone, Copy)]
pub struct TemplateFacts<'a> {
    /// The template, in Jinja.
    pub source: &'a str,
    /// The text of the token that begins texts.
    pub bos: Option<&'a str>,
    /// The text of the token that ends texts.
    pub eos: Option<&'a str>,
    /// Whether the server begins texts with that token by itself (`tokenizer.ggml.add_bos_token`).
    pub add_bos: bool,
}

/// What a conversation is rendered to, as texts around what is said.
///
/// Each text stands before a turn and depends on the turn before. That is all a Go template in Ollama can tell apart with ease,
/// and all that most chat templates do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OllamaTemplate {
    /// Before the user's first turn, where there is no system message: a default one may be in it.
    start_user: String,
    /// Around a system message: before it, and from it to the user's turn. `None` where the template refuses or ignores it.
    system: Option<(String, String)>,
    /// From the user's turn to the assistant's answer.
    user_assistant: String,
    /// From the assistant's answer to the user's next turn.
    assistant_user: String,
    /// From the user's last turn to where the assistant is to answer.
    prompt: String,
}

impl OllamaTemplate {
    /// Finds it, or says why there is none: `Ok(Err(reason))`.
    ///
    /// # Errors
    /// When the template is not valid Jinja.
    pub fn derive(facts: &TemplateFacts) -> Result<std::result::Result<Self, String>> {
        let at = |day| ChatTemplate::at(facts.source, facts.bos, facts.eos, day);
        let (template, later) = (at(DAYS[0])?, at(DAYS[1])?);
        let probe = Probe { template: &template, facts };
        let derived = probe.derive().and_then(|derived| {
            let other = Probe { template: &later, facts }.derive();
            if other.as_ref() != Ok(&derived) {
                return Err("it prints the date, which a Modelfile cannot".to_string());
            }
            probe.verify(&derived)?;
            Ok(derived)
        });
        Ok(derived)
    }

    /// The conversation as the Go template writes it, up to where the assistant is to answer.
    fn render(&self, messages: &[Message]) -> String {
        let (mut text, mut previous) = (String::new(), None);
        for message in messages {
            let before = match (message.role, previous) {
                (Role::System, _) => self.system.as_ref().map(|(before, _)| before),
                (Role::User, None) => Some(&self.start_user),
                (Role::User, Some(Role::System)) => {
                    Some(self.system.as_ref().map_or(&self.start_user, |(_, after)| after))
                }
                (Role::User, Some(_)) => Some(&self.assistant_user),
                (Role::Assistant, _) => Some(&self.user_assistant),
                (Role::Tool, _) => None,
            };
            if let Some(before) = before {
                text.push_str(before);
                text.push_str(&message.content);
                previous = Some(message.role);
            }
        }
        if previous == Some(Role::User) {
            text.push_str(&self.prompt);
        }
        text
    }

    /// The template in Go's language, over Ollama's `.Messages`.
    pub fn to_go(&self) -> String {
        let user = match &self.system {
            Some((_, after)) if *after != self.start_user && *after != self.assistant_user => format!(
                "{{{{ if eq $previous \"\" }}}}{}{{{{ else if eq $previous \"system\" }}}}{}{{{{ else }}}}{}{{{{ end }}}}",
                go_text(&self.start_user),
                go_text(after),
                go_text(&self.assistant_user)
            ),
            Some((_, after)) if *after == self.start_user && *after != self.assistant_user => format!(
                "{{{{ if eq $previous \"assistant\" }}}}{}{{{{ else }}}}{}{{{{ end }}}}",
                go_text(&self.assistant_user),
                go_text(&self.start_user)
            ),
            _ if self.start_user == self.assistant_user => go_text(&self.start_user),
            _ => format!(
                "{{{{ if eq $previous \"\" }}}}{}{{{{ else }}}}{}{{{{ end }}}}",
                go_text(&self.start_user),
                go_text(&self.assistant_user)
            ),
        };
        let turn = |role: &str, before: &str| {
            format!("{{{{- else if eq .Role \"{role}\" }}}}{before}{{{{ .Content }}}}{{{{ $previous = .Role }}}}\n")
        };
        let mut go = String::from("{{- $previous := \"\" }}\n{{- range .Messages }}\n");
        let mut turns = String::new();
        if let Some((before, _)) = &self.system {
            turns.push_str(&turn("system", &go_text(before)));
        }
        turns.push_str(&turn("user", &user));
        turns.push_str(&turn("assistant", &go_text(&self.user_assistant)));
        go.push_str(&turns.replacen("{{- else if", "{{- if", 1));
        go.push_str("{{- end }}\n{{- end }}\n{{- if eq $previous \"user\" }}");
        let _ = write!(go, "{}{{{{ end }}}}", go_text(&self.prompt));
        go
    }

    /// Whether a system message has a place.
    pub fn takes_system(&self) -> bool {
        self.system.is_some()
    }
}

/// A text as an action that prints it. Quoted, since white space beside actions may be trimmed; and everything escaped that Ollama
/// leaves out of a Modelfile because it is not printable.
fn go_text(text: &str) -> String {
    if text.is_empty() {
        return String::new();
    }
    let mut quoted = String::from("{{ \"");
    for c in text.chars() {
        let _ = match c {
            '"' | '\\' => write!(quoted, "\\{c}"),
            '\n' => write!(quoted, "\\n"),
            '\t' => write!(quoted, "\\t"),
            ' '..='~' => write!(quoted, "{c}"),
            c if c.is_alphanumeric() => write!(quoted, "{c}"),
            c if (c as u32) < 0x1_0000 => write!(quoted, "\\u{:04x}", c as u32),
            c => write!(quoted, "\\U{:08x}", c as u32),
        };
    }
    quoted.push_str("\" }}");
    quoted
}

/// A template that is being tried.
struct Probe<'a> {
    template: &'a ChatTemplate,
    facts: &'a TemplateFacts<'a>,
}

/// What is said in trials: words that no template has.
const SAID: [&str; 4] = ["qzxSystem", "qzxFirst", "qzxAnswer", "qzxSecond"];

impl Probe<'_> {
    fn derive(&self) -> std::result::Result<OllamaTemplate, String> {
        let [system, first, answer, second] = SAID;
        let (user, assistant) = (Message::user(first), Message::assistant(answer));
        let one = self.between(std::slice::from_ref(&user))?;
        let three = self.between(&[user.clone(), assistant, Message::user(second)])?;
        let [start_user, prompt] = one.try_into().map_err(|_| "a trial failed".to_string())?;
        let [start, user_assistant, assistant_user, end] =
            three.try_into().map_err(|_| "a trial failed".to_string())?;
        if start != start_user || end != prompt {
            return Err("it writes a turn otherwise when more turns follow".into());
        }
        let with_system = [Message::new(Role::System, system), user];
        // A template that refuses system messages, or leaves them out, has no place for them.
        let system = match self.render(&with_system) {
            Ok(text) if text.contains(system) => {
                let [before, after, end] =
                    self.between(&with_system)?.try_into().map_err(|_| "a trial failed".to_string())?;
                if end != prompt {
                    return Err("it writes the user's turn otherwise after a system message".into());
                }
                Some((before, after))
            }
            _ => None,
        };
        Ok(OllamaTemplate { start_user, system, user_assistant, assistant_user, prompt })
    }

    /// The rendering up to where the assistant is to answer, without the token that the server puts before it.
    fn render(&self, messages: &[Message]) -> std::result::Result<String, String> {
        let text = self.template.render(messages, &[], true).map_err(|error| error.to_string())?;
        match self.facts.bos.filter(|bos| self.facts.add_bos && !bos.is_empty()) {
            Some(bos) => Ok(text.strip_prefix(bos).map_or(text.clone(), String::from)),
            None => Ok(text),
        }
    }

    /// What stands before, between and after what is said.
    fn between(&self, messages: &[Message]) -> std::result::Result<Vec<String>, String> {
        let text = self.render(messages)?;
        let (mut texts, mut rest) = (Vec::new(), text.as_str());
        for message in messages {
            let (before, after) = rest.split_once(message.content.as_str()).ok_or("it leaves out what was said")?;
            if after.contains(message.content.as_str()) {
                return Err("it writes a turn twice".into());
            }
            texts.push(before.to_string());
            rest = after;
        }
        texts.push(rest.to_string());
        Ok(texts)
    }

    /// Holds the derived template against conversations of two and three turns, with and without a system message.
    fn verify(&self, derived: &OllamaTemplate) -> std::result::Result<(), String> {
        let said = ["What is \"it\"?", "A list:\n\n- {{ one }}\n- two", "é, and\n  more", "Yes.", "x", "No\\n", "Why?"];
        for turns in [1, 3, 5, 7] {
            for with_system in [false, true] {
                let mut messages: Vec<Message> = Vec::new();
                if with_system {
                    messages.push(Message::new(Role::System, "Be brief.\nBe \"kind\"."));
                }
                let role = |turn: usize| if turn.is_multiple_of(2) { Role::User } else { Role::Assistant };
                messages.extend(said[..turns].iter().enumerate().map(|(turn, text)| Message::new(role(turn), *text)));
                if with_system && !derived.takes_system() {
                    continue;
                }
                let expected = self.render(&messages)?;
                if derived.render(&messages) != expected {
                    let system = if with_system { " after a system message" } else { "" };
                    return Err(format!("it writes a conversation of {turns} turns{system} in a way of its own"));
                }
            }
        }
        Ok(())
    }
}

/// `--to ollama`: the merged model and its Modelfile.
pub(super) fn export_merged(job: &Job<'_>, out: &mut Output<'_>) -> Result<()> {
    let model = gguf::export_model(job, out)?;
    write_modelfile(job, &format!("./{model}"), None, out)
}

/// `--to ollama-adapter`: the adapter, and a Modelfile that lays it on the base where that lies.
pub(super) fn export_adapter(job: &Job<'_>, out: &mut Output<'_>) -> Result<()> {
    let adapter = gguf::export_adapter_file(job, out)?;
    let base = job.base.path().canonicalize().map_err(Error::io("find", job.base.path()))?;
    write_modelfile(job, &base.display().to_string(), Some(&format!("./{adapter}")), out)
}

fn write_modelfile(job: &Job<'_>, from: &str, adapter: Option<&str>, out: &mut Output<'_>) -> Result<()> {
    let special = job.base.special_tokens();
    let text = |token: &'_ Option<(String, u32)>| token.as_ref().map(|(text, _)| text.clone());
    let (bos, eos) = (text(&special.bos), text(&special.eos));
    let derive = |source| {
        OllamaTemplate::derive(&TemplateFacts {
            source,
            bos: bos.as_deref(),
            eos: eos.as_deref(),
            add_bos: special.add_bos,
        })
    };
    let template = job.chat_template().map(derive).transpose()?;
    if let Some(Err(reason)) = &template {
        out.note(format!("the Modelfile has no TEMPLATE: {reason}"));
    }
    let facts = ModelfileFacts { from, adapter, template: template.as_ref(), stop: job.stop };
    out.small("Modelfile", modelfile(&facts).as_bytes())
}

/// What goes into a Modelfile.
#[derive(Debug, Clone, Copy)]
pub struct ModelfileFacts<'a> {
    /// The model: a GGUF file beside the Modelfile, or a model's name at Ollama.
    pub from: &'a str,
    /// The adapter: a GGUF file beside the Modelfile.
    pub adapter: Option<&'a str>,
    /// The chat template; `None` for a model that has none.
    pub template: Option<&'a std::result::Result<OllamaTemplate, String>>,
    /// The texts of the tokens that end an answer.
    pub stop: &'a [String],
}

/// The Modelfile's text.
pub fn modelfile(facts: &ModelfileFacts) -> String {
    let mut text = format!("FROM {}\n", facts.from);
    if let Some(adapter) = facts.adapter {
        let _ = writeln!(text, "ADAPTER {adapter}");
    }
    match facts.template {
        None => {}
        Some(Err(reason)) => {
            let reason = reason.split_whitespace().collect::<Vec<_>>().join(" ");
            let _ = writeln!(
                text,
                "# No TEMPLATE: the model's chat template cannot be said in Ollama's language ({reason}).\n\
                 # Ollama reads the one in the GGUF file, for the families that it knows."
            );
        }
        Some(Ok(template)) => {
            if !template.takes_system() {
                text.push_str("# The model's chat template takes no system message; one would be left out.\n");
            }
            let _ = writeln!(text, "TEMPLATE \"\"\"{}\"\"\"", template.to_go());
        }
    }
    for stop in facts.stop {
        match quoted(stop) {
            Some(stop) => _ = writeln!(text, "PARAMETER stop {stop}"),
            None => text.push_str("# One stop text cannot be written in a Modelfile.\n"),
        }
    }
    text
}

/// A value in quotes. Ollama takes off the quotes and reads no escapes, so three of them stand around a text with quotes; `None`
/// for what neither can hold.
fn quoted(text: &str) -> Option<String> {
    if text.chars().any(char::is_control) || text.contains("\"\"\"") || text.ends_with('"') {
        return None;
    }
    Some(if text.contains('"') { format!("\"\"\"{text}\"\"\"") } else { format!("\"{text}\"") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::named;

    const SMOLLM2: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

    fn derive(source: &str, add_bos: bool) -> std::result::Result<OllamaTemplate, String> {
        let facts = TemplateFacts { source, bos: Some("<s>"), eos: Some("</s>"), add_bos };
        OllamaTemplate::derive(&facts).unwrap()
    }

    #[test]
    fn smollm2_has_a_system_message_of_its_own() {
        let template = derive(SMOLLM2, false).unwrap();
        let text = template.render(&[Message::user("Hi")]);
        assert_eq!(
            text,
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
             <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        );
        assert_eq!(
            template.to_go(),
            r#"{{- $previous := "" }}
{{- range .Messages }}
{{- if eq .Role "system" }}{{ "<|im_start|>system\n" }}{{ .Content }}{{ $previous = .Role }}
{{- else if eq .Role "user" }}{{ if eq $previous "" }}{{ "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n<|im_start|>user\n" }}{{ else }}{{ "<|im_end|>\n<|im_start|>user\n" }}{{ end }}{{ .Content }}{{ $previous = .Role }}
{{- else if eq .Role "assistant" }}{{ "<|im_end|>\n<|im_start|>assistant\n" }}{{ .Content }}{{ $previous = .Role }}
{{- end }}
{{- end }}
{{- if eq $previous "user" }}{{ "<|im_end|>\n<|im_start|>assistant\n" }}{{ end }}"#
        );
    }

    #[test]
    fn every_named_template_is_written() {
        for named in named::NAMED {
            let template = derive(named.source, true).unwrap_or_else(|why| panic!("{}: {why}", named.name));
            assert!(template.takes_system(), "{}", named.name);
            assert!(!template.render(&[Message::user("q")]).starts_with("<s>"), "{}", named.name);
        }
        let bos = derive(named::find("mistral").unwrap().source, false).unwrap();
        assert!(bos.render(&[Message::user("q")]).starts_with("<s>[INST]"), "nobody else writes it");
    }

    #[test]
    fn what_cannot_be_said_has_a_reason() {
        let turn = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}";
        assert!(derive(&format!("{}{turn}", "{{ strftime_now('%d %b %Y') }}"), true).unwrap_err().contains("the date"));
        assert!(derive(&format!("{turn}{}", "{{ messages | length }}"), true).unwrap_err().contains("more turns"));
        assert!(derive("{{ messages[-1].content }}", true).unwrap_err().contains("leaves out"));
        assert!(derive(&format!("{turn}{turn}"), true).unwrap_err().contains("twice"));
        let shouted = "{% for m in messages %}<{{ m.role }}>{{ m.content | replace('Why', 'WHY') }}{% endfor %}";
        assert!(derive(shouted, true).unwrap_err().contains("7 turns in a way of its own"));
        let refusing =
            format!("{}{turn}", "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}");
        let template = derive(&refusing, true).unwrap();
        assert!(!template.takes_system() && !template.to_go().contains("system"));
        let facts = TemplateFacts { source: "{% if %}", bos: None, eos: None, add_bos: false };
        assert!(OllamaTemplate::derive(&facts).is_err(), "no Jinja is an error, not a reason");
    }

    #[test]
    fn texts_are_quoted_for_go_and_for_modelfiles() {
        assert_eq!(go_text("a\"b\\\n\t\u{a0}｜é"), "{{ \"a\\\"b\\\\\\n\\t\\u00a0\\uff5cé\" }}");
        assert_eq!(quoted("<|im_end|>").unwrap(), "\"<|im_end|>\"");
        assert_eq!(quoted("say \"x\" now").unwrap(), "\"\"\"say \"x\" now\"\"\"");
        assert_eq!(quoted("x\""), None);
        assert_eq!(quoted("a\nb"), None);
    }

    #[test]
    fn a_modelfile_holds_what_ollama_needs() {
        let template = derive(named::find("chatml").unwrap().source, true);
        let stop = ["<|im_end|>".to_string(), "<|endoftext|>".to_string()];
        let facts = ModelfileFacts {
            from: "./base.gguf",
            adapter: Some("./adapter.gguf"),
            template: Some(&template),
            stop: &stop,
        };
        let text = modelfile(&facts);
        assert!(text.starts_with("FROM ./base.gguf\nADAPTER ./adapter.gguf\nTEMPLATE \"\"\"{{- $previous"), "{text}");
        assert!(text.ends_with("\"\"\"\nPARAMETER stop \"<|im_end|>\"\nPARAMETER stop \"<|endoftext|>\"\n"), "{text}");
        let reason = Err("it prints\nthe date".to_string());
        let text = modelfile(&ModelfileFacts { adapter: None, template: Some(&reason), stop: &[], ..facts });
        assert!(text.contains("# No TEMPLATE") && text.contains("(it prints the date)") && !text.contains("ADAPTER"));
        assert!(text.lines().all(|line| line.starts_with('#') || line.starts_with("FROM")), "{text}");
    }
}
