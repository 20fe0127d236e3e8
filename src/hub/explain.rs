//! The Hub's refusals in our words.

use super::line::Refusal;
use super::session::Session;
use crate::error::Error;
use hf_hub::split_id;

impl Session<'_> {
    /// The refusal in our words: what happened to what, and what to do.
    pub fn explain(&self, refusal: &Refusal, what: &str) -> Error {
        let (repo, hub) = (&self.options.repo, &self.line.endpoint);
        let owner = split_id(repo).0;
        let said = if refusal.message.is_empty() { String::new() } else { format!(": {}", refusal.message) };
        let again = "run the same command again: what has arrived is not sent a second time";
        let tokens = format!("{hub}/settings/tokens");
        let (message, help) = match refusal.status {
            Some(401) => (
                format!("{repo}: the Hub does not accept the token (401){said}"),
                format!("it may have expired: make one with the role `write` at {tokens}, and set HF_TOKEN to it"),
            ),
            Some(402) => (
                format!("{repo}: {owner} has no room left on the Hub (402){said}"),
                format!("see {hub}/settings/billing"),
            ),
            Some(403) => (
                format!("{repo}: the Hub refuses {what} (403){said}"),
                format!(
                    "the token may not write to {owner}'s repositories: check it at {tokens}, or take another owner with --repo"
                ),
            ),
            Some(404) => (
                format!("{repo}: the Hub does not find {what} (404){said}"),
                format!("check the name at {hub}/{repo}; a private repository is not found by others' tokens"),
            ),
            Some(status @ (409 | 412)) => (
                format!("{repo}: somebody else keeps committing to {} ({status}){said}", self.options.branch()),
                again.into(),
            ),
            Some(413) => {
                (format!("{repo}: the Hub finds {what} too large (413){said}"), "write the model in shards".into())
            }
            Some(429) => {
                let wait = refusal.retry_after.map_or("a while".into(), |wait| format!("{} seconds", wait.as_secs()));
                (
                    format!("{repo}: the Hub asks us to wait (429, too many requests){said}"),
                    format!("wait {wait}, then {again}"),
                )
            }
            Some(200) => (
                format!("{repo}: {hub} does not answer as the Hub does{said}"),
                "check HF_ENDPOINT; if it is the Hub, update Equipoise".into(),
            ),
            Some(status @ 500..) => (
                format!("{repo}: the Hub has a failure of its own ({status}) at {what}{said}"),
                format!("later, {again}"),
            ),
            Some(status) => {
                (format!("{repo}: the Hub refuses {what} ({status}){said}"), "fix what it says, and try again".into())
            }
            None if self.options.create_pr && what == "the commit" => (
                format!("{repo}: the line broke before the Hub could answer{said}"),
                format!("see {hub}/{repo}/discussions whether the pull request is there; if not, {again}"),
            ),
            None => {
                (format!("{repo}: the line to {hub} broke at {what}{said}"), format!("check the network, then {again}"))
            }
        };
        Error::Hub { message, help: Some(help) }
    }
}
