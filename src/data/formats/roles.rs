//! Who speaks a turn: the names that data files have for the roles, and those that the recipe's `data.roles` adds.

use super::RowError;
use super::fields::{list, shown};
use crate::data::example::Role;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;

/// What a turn is by its speaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Speaker {
    pub role: Role,
    /// Whether its text is a call of a tool, as JSON.
    pub calls: bool,
    /// A name that the chat template gets as it is, in place of the role's.
    pub keeps_name: bool,
}

/// The name of turns that are calls of tools.
const CALL: &str = "tool_call";

/// The names, in lower case and with `_` between words, and what they mean. The first five are those of `data.roles`.
const NAMES: &[(&str, Speaker)] = &[
    ("system", plain(Role::System)),
    ("user", plain(Role::User)),
    ("assistant", plain(Role::Assistant)),
    ("tool", plain(Role::Tool)),
    (CALL, calling()),
    ("developer", plain(Role::System)),
    ("human", plain(Role::User)),
    ("prompter", plain(Role::User)),
    ("gpt", plain(Role::Assistant)),
    ("gpt4", plain(Role::Assistant)),
    ("gpt_4", plain(Role::Assistant)),
    ("gpt_4o", plain(Role::Assistant)),
    ("gpt_3.5", plain(Role::Assistant)),
    ("gpt_3.5_turbo", plain(Role::Assistant)),
    ("chatgpt", plain(Role::Assistant)),
    ("bing", plain(Role::Assistant)),
    ("bard", plain(Role::Assistant)),
    ("claude", plain(Role::Assistant)),
    ("gemini", plain(Role::Assistant)),
    ("model", plain(Role::Assistant)),
    ("bot", plain(Role::Assistant)),
    ("chatbot", plain(Role::Assistant)),
    ("ai", plain(Role::Assistant)),
    ("function_call", calling()),
    ("tool_calls", calling()),
    ("function", plain(Role::Tool)),
    ("function_response", plain(Role::Tool)),
    ("tool_response", plain(Role::Tool)),
    ("tool_result", plain(Role::Tool)),
    ("observation", plain(Role::Tool)),
    // Llama 3.1's own name for what a tool returns.
    ("ipython", Speaker { role: Role::Tool, calls: false, keeps_name: true }),
];

/// How many of [`NAMES`] are keys of `data.roles`.
const KEYS: usize = 5;

const fn plain(role: Role) -> Speaker {
    Speaker { role, calls: false, keeps_name: false }
}

const fn calling() -> Speaker {
    Speaker { role: Role::Assistant, calls: true, keeps_name: false }
}

/// The recipe's `data.roles`: for a role the names that the rows have for it, as well as those that are known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Roles(BTreeMap<String, Vec<String>>);

impl Roles {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Checks the roles, and that no name stands for two.
    ///
    /// # Errors
    /// The role (empty for the whole), what is wrong, and what to do.
    pub(in crate::data) fn check(&self) -> Result<(), (String, String, String)> {
        let keys = || list(NAMES[..KEYS].iter().map(|(name, _)| name), "and");
        for (role, names) in &self.0 {
            if speaker_of(role, &NAMES[..KEYS]).is_none() {
                let turned = names.iter().find(|name| speaker_of(name, &NAMES[..KEYS]).is_some());
                let help = match turned {
                    Some(known) => format!("the role comes first: `roles: {{{known}: [{role}]}}`"),
                    None => format!("write `roles: {{assistant: [{role}]}}`, or another role"),
                };
                return Err((role.clone(), format!("is not a role; the roles are {}", keys()), help));
            }
            if names.iter().any(|name| name.trim().is_empty()) || names.is_empty() {
                let help = format!("write the names that the rows have: `roles: {{{role}: [NAME]}}`");
                return Err((role.clone(), "has an empty name".to_string(), help));
            }
        }
        let all: Vec<_> = self.0.iter().flat_map(|(role, names)| names.iter().map(move |name| (role, name))).collect();
        let twice = all.iter().find(|(role, name)| all.iter().any(|(other, same)| same == name && other != role));
        match twice {
            Some((role, name)) => {
                let help = "a name stands for one role; take it out of the others".to_string();
                let other = all.iter().find(|(other, same)| same == name && other != role);
                let other = other.map_or("another role", |(other, _)| other.as_str());
                Err(((*role).clone(), format!("`{}` stands for `{other}` too", shown(name)), help))
            }
            None => Ok(()),
        }
    }

    /// Who speaks under this name: by the recipe's names, letter by letter and then in any case, and by the known ones.
    ///
    /// # Errors
    /// When nobody does: lists the names.
    pub(super) fn speaker(&self, name: &str) -> Result<Speaker, RowError> {
        let own = |same: &dyn Fn(&str) -> bool| {
            let found = self.0.iter().find(|(_, names)| names.iter().any(|own| same(own)));
            found.and_then(|(role, _)| speaker_of(role, &NAMES[..KEYS]))
        };
        own(&|own| own == name)
            .or_else(|| own(&|own| normal(own) == normal(name)))
            .or_else(|| speaker_of(name, NAMES))
            .ok_or_else(|| unknown(name))
    }
}

fn speaker_of(name: &str, names: &[(&str, Speaker)]) -> Option<Speaker> {
    let name = normal(name);
    names.iter().find(|(known, _)| *known == name).map(|(_, speaker)| *speaker)
}

/// A name without what files write in different ways.
fn normal(name: &str) -> String {
    name.trim().to_lowercase().replace([' ', '-'], "_")
}

fn unknown(name: &str) -> RowError {
    RowError::new([], format!("unknown role `{}`", shown(name))).with_help(format!(
        "the roles are {}, and other names for them: {}; for another name say whose it is: `data.roles: {{assistant: [{}]}}`",
        list(NAMES[..KEYS].iter().map(|(name, _)| name), "and"),
        list(NAMES[KEYS..].iter().map(|(name, _)| name), "and"),
        shown(name)
    ))
}

impl<'de> Deserialize<'de> for Roles {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a name, or a list of names: `roles: {assistant: [bing, AI]}`")]
        enum Names {
            One(String),
            Several(Vec<String>),
        }
        let roles = BTreeMap::<String, Names>::deserialize(deserializer)?;
        let names = |names| match names {
            Names::One(name) => vec![name],
            Names::Several(names) => names,
        };
        Ok(Self(roles.into_iter().map(|(role, own)| (role, names(own))).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roles(text: &str) -> Roles {
        serde_yaml::from_str(text).unwrap()
    }

    #[test]
    fn names_are_known_in_any_case_and_spelling() {
        let none = Roles::default();
        for (name, role, calls) in [
            ("User", Role::User, false),
            ("ASSISTANT", Role::Assistant, false),
            ("gpt-4", Role::Assistant, false),
            ("Tool Response", Role::Tool, false),
            ("tool_call", Role::Assistant, true),
            ("function-call", Role::Assistant, true),
        ] {
            let speaker = none.speaker(name).unwrap();
            assert_eq!((speaker.role, speaker.calls, speaker.keeps_name), (role, calls, false), "{name}");
        }
        assert!(none.speaker("ipython").unwrap().keeps_name);
        let error = none.speaker("narrator").unwrap_err();
        assert!(error.help.unwrap().contains("`data.roles: {assistant: [narrator]}`"));
    }

    #[test]
    fn the_recipes_names_take_precedence() {
        let own = roles("{assistant: [Tutor, model-7], user: human, tool: [user_tool], tool_call: act}");
        own.check().unwrap();
        assert_eq!(own.speaker("tutor").unwrap().role, Role::Assistant);
        assert_eq!(own.speaker("MODEL 7").unwrap().role, Role::Assistant);
        assert!(own.speaker("act").unwrap().calls);
        assert_eq!(roles("{user: [assistant], assistant: [user]}").speaker("user").unwrap().role, Role::Assistant);
    }

    #[test]
    fn mistakes_are_named_with_what_to_write() {
        for (text, message, help) in [
            ("{bing: assistant}", "is not a role", "`roles: {assistant: [bing]}`"),
            ("{narrator: [x]}", "is not a role", "`roles: {assistant: [narrator]}`"),
            ("{user: [a], tool: [a]}", "`a` stands for `user` too", "one role"),
            ("{user: []}", "has an empty name", "[NAME]"),
        ] {
            let (_, said, to_do) = roles(text).check().unwrap_err();
            assert!(said.contains(message) && to_do.contains(help), "{text}: {said}; {to_do}");
        }
    }
}
