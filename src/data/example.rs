//! One row's meaning, before it becomes tokens. It knows neither files nor tokenizers.

use serde_json::{Map, Value};

/// What a row of data teaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Example {
    /// Plain text: `completion` is learnt as what follows `prompt`. No chat template is involved.
    Completion {
        /// What is given. May be empty.
        prompt: String,
        /// What is learnt.
        completion: String,
    },
    /// A conversation: the assistant's turns are learnt.
    Chat {
        /// The turns in order; at least one is the assistant's.
        messages: Vec<Message>,
        /// The tools that the assistant may call, as the chat template takes them (`JSON` schemas); mostly none.
        tools: Vec<Value>,
        /// More variables of the chat template, by name, as transformers' `apply_chat_template` takes them: a row's
        /// `chat_template_kwargs`, `{"enable_thinking": false}` for one. They take precedence over special tokens of the same name;
        /// `messages`, `tools` and `add_generation_prompt` they do not replace. Mostly none.
        template_kwargs: Map<String, Value>,
    },
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// The row's own name for who speaks, where it is another: a template may know it.
    pub called: Option<String>,
    /// What is said. May be empty where `extra` holds calls of tools.
    pub content: String,
    /// What else the chat template may ask for: `tool_calls`, `tool_call_id`, `name`, `reasoning_content` and so on, as the
    /// row has it. A `role` here is what the template gets in place of the role's own name; a `content` stands in place of
    /// the other: a list of parts, or null where nothing is said. What is null is not there for the template, as in transformers.
    pub extra: Map<String, Value>,
    /// Whether an assistant's turn is learnt; where nothing is said, the recipe decides.
    pub train: Option<bool>,
}

/// Who speaks a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Sets the scene.
    System,
    /// Asks.
    User,
    /// Answers: these turns are learnt.
    Assistant,
    /// Returns what a tool found.
    Tool,
}

impl Example {
    /// A conversation without tools.
    pub fn chat(messages: Vec<Message>) -> Self {
        Self::Chat { messages, tools: Vec::new(), template_kwargs: Map::new() }
    }
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 4] = [Self::System, Self::User, Self::Assistant, Self::Tool];

    /// The name in data files and templates.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }

    /// The role of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == name)
    }
}

impl Message {
    /// A turn.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, called: None, content: content.into(), extra: Map::new(), train: None }
    }

    /// Whether it is an assistant's turn that says, calls and thinks nothing.
    pub fn is_silent(&self) -> bool {
        let given = |key: &&str| match self.extra.get(*key) {
            None | Some(Value::Null) => false,
            Some(Value::String(text)) => !text.trim().is_empty(),
            Some(Value::Array(list)) => !list.is_empty(),
            Some(_) => true,
        };
        self.role == Role::Assistant
            && self.content.trim().is_empty()
            && !["tool_calls", "reasoning_content", "reasoning", "thinking"].iter().any(given)
    }

    /// A user's turn.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new(Role::User, content)
    }

    /// An assistant's turn that calls tools and says nothing: it has no content.
    pub fn calls(tool_calls: Vec<Value>) -> Self {
        Self::assistant("").with("content", Value::Null).with("tool_calls", Value::Array(tool_calls))
    }

    /// The same turn with something else that the chat template may ask for.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: Value) -> Self {
        self.extra.insert(key.into(), value);
        self
    }

    /// An assistant's turn.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new(Role::Assistant, content)
    }
}
