//! The recipe's `hub`: where the adapter goes after training.

use super::upload::UploadOptions;
use super::{Kind, is_plain, parse_id};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The most characters of a commit message.
const MOST_MESSAGE: usize = 1000;

/// The repository to which the adapter is uploaded after training. It decides nothing of the result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HubConfig {
    /// `user/name` or `organisation/name`; it is created where there is none.
    pub repo: String,
    /// Whether a repository that is created is private. One that exists stays as it is.
    #[serde(default = "yes")]
    pub private: bool,
    /// The branch; `main` by default. It is created where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Open a pull request instead of committing to the branch.
    #[serde(default, skip_serializing_if = "is_no")]
    pub create_pr: bool,
    /// The commit's message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The adapter's licence, by the Hub's name for it: `apache-2.0`, `mit`, `cc-by-4.0`, `other`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
    /// The language of the data, by its ISO 639 code: `en`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
    /// The base's Hub id, where `base.model` is a path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
}

const fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_no(value: &bool) -> bool {
    !*value
}

impl HubConfig {
    /// # Errors
    /// Names the key and what it takes.
    pub fn validate(&self) -> Result<()> {
        self.options().validate("hub.")?;
        let code =
            |text: &str| (2..=16).contains(&text.len()) && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        if self.language.as_deref().is_some_and(|language| !code(language)) {
            return Err(Error::invalid("hub.language: expected a code such as `en`"));
        }
        Ok(())
    }

    /// The same, as an upload takes it.
    pub fn options(&self) -> UploadOptions {
        UploadOptions {
            repo: self.repo.clone(),
            private: self.private,
            revision: self.revision.clone(),
            create_pr: self.create_pr,
            message: self.message.clone(),
            base_model: self.base.clone(),
            license: self.license.clone(),
            endpoint: None,
        }
    }
}

impl UploadOptions {
    /// Checks what can be checked without network. `prefix` stands in front of the names that errors say.
    ///
    /// # Errors
    /// Names the option and what it takes.
    pub fn validate(&self, prefix: &str) -> Result<()> {
        if !is_repo(&self.repo) {
            return Err(Error::invalid(format!("{prefix}repo: `{}` is not a repository's name", self.repo))
                .with_help(repo_help(&self.repo)));
        }
        if self.revision.as_deref().is_some_and(|revision| !is_branch(revision)) {
            return Err(Error::invalid(format!("{prefix}revision: this is not a branch's name"))
                .with_help("for example `main` or `v2`; for a pull request there is `create_pr`, or --pr"));
        }
        if self.base_model.as_deref().is_some_and(|id| !is_repo(id)) {
            let key = if prefix.is_empty() { "base_model" } else { "base" };
            return Err(Error::invalid(format!("{prefix}{key}: expected a Hub id, org/name")));
        }
        let is_license = |text: &str| {
            (2..=64).contains(&text.len()) && text.chars().all(|c| c.is_ascii_alphanumeric() || "-._+".contains(c))
        };
        if self.license.as_deref().is_some_and(|license| !is_license(license)) {
            return Err(Error::invalid(format!("{prefix}license: expected the Hub's name of a licence"))
                .with_help("for example apache-2.0, mit, cc-by-4.0, llama3.2, other"));
        }
        if self.message.as_deref().is_some_and(|text| text.trim().is_empty() || text.len() > MOST_MESSAGE) {
            return Err(Error::invalid(format!("{prefix}message: is empty, or longer than {MOST_MESSAGE} bytes")));
        }
        Ok(())
    }
}

/// `owner/name`, as the Hub takes it.
pub(super) fn is_repo(text: &str) -> bool {
    let fits = |part: &str| !part.ends_with(['.', '-']) && !part.contains("--") && !part.contains("..");
    parse_id(Kind::Model, text).is_some_and(|id| {
        !text.contains('@') && !id.owner.is_empty() && fits(&id.owner) && fits(&id.name) && !ends(&id.name, "git")
    })
}

/// Whether git would take a name for one of its own files.
fn ends(name: &str, extension: &str) -> bool {
    Path::new(name).extension().is_some_and(|e| e.eq_ignore_ascii_case(extension))
}

fn repo_help(text: &str) -> String {
    let rest = text.trim_end_matches('/').split_once("://").map(|(_, rest)| rest);
    if let Some((_, id)) = rest.and_then(|rest| rest.split_once('/')).filter(|(_, id)| is_repo(id)) {
        return format!("write the name without the address: {id}");
    }
    if text.contains('@') {
        return "the branch is `revision`, or --revision".into();
    }
    if !text.contains('/') {
        return format!("put your user name or your organisation in front: USER/{text}");
    }
    "it is user/name, of letters, digits, `-`, `_` and `.`, 96 characters at most each".into()
}

fn is_branch(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    is_plain(text) && text.len() <= 200 && text.chars().all(fits) && !text.contains("..") && !ends(text, "lock")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(yaml: &str) -> Result<HubConfig> {
        let config: HubConfig = serde_yaml::from_str(yaml).map_err(|error| Error::invalid(error.to_string()))?;
        config.validate().map(|()| config)
    }

    #[test]
    fn a_repository_is_private_unless_said_otherwise() {
        let config = config("repo: me/mine").unwrap();
        assert!(config.private && !config.create_pr);
        assert_eq!(serde_yaml::to_string(&config).unwrap(), "repo: me/mine\nprivate: true\n");
    }

    #[test]
    fn wrong_values_are_answered() {
        for (yaml, phrases) in [
            ("repo: mine", ["hub.repo", "USER/mine"]),
            ("repo: https://huggingface.co/me/mine", ["hub.repo", "without the address: me/mine"]),
            ("repo: me/mine@v2", ["hub.repo", "--revision"]),
            ("repo: ../mine", ["hub.repo", "user/name"]),
            ("repo: me/a--b", ["hub.repo", "user/name"]),
            ("{repo: me/mine, revision: ../x}", ["hub.revision", "branch"]),
            ("{repo: me/mine, base: /data/llama}", ["hub.base:", "org/name"]),
            ("{repo: me/mine, license: \"MIT license\"}", ["hub.license", "apache-2.0"]),
            ("{repo: me/mine, language: English (UK)}", ["hub.language", "`en`"]),
            ("{repo: me/mine, message: \" \"}", ["hub.message", "empty"]),
            ("{repo: me/mine, token: hf_x}", ["token", "unknown field"]),
        ] {
            let error = config(yaml).unwrap_err();
            let told = format!("{error} {}", error.help().unwrap_or_default());
            assert!(phrases.iter().all(|phrase| told.contains(phrase)), "{yaml}: {told}");
        }
    }
}
