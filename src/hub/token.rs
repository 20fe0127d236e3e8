//! The Hub's token: where it is found, and what it may do. It never appears in a message, a log or a file.

use super::config::is_repo;
use crate::error::{Error, Result};
use serde_json::Value;
use std::path::Path;

/// A secret. Nothing prints it.
#[derive(Clone)]
pub(super) struct Token(String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Token {
    /// `None` for what cannot be one: such a text would not fit into a header, and some library would print it.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty() && text.len() <= 4096 && text.bytes().all(|byte| byte.is_ascii_graphic()))
            .then(|| Self(text.to_owned()))
    }

    /// The secret, for a request's header alone.
    pub fn secret(&self) -> &str {
        &self.0
    }

    /// A text of others, in which the token does not appear.
    pub fn redact(&self, text: &str) -> String {
        text.replace(&self.0, "…")
    }

    /// Whether a file holds the token.
    pub fn is_in(&self, bytes: &[u8]) -> bool {
        let token = self.0.as_bytes();
        // What is shorter is no token of the Hub, and would be found by chance.
        token.len() >= 8 && bytes.windows(token.len()).any(|window| window == token)
    }
}

/// The token by Hugging Face's rules: `HF_TOKEN`, the file that `HF_TOKEN_PATH` names, the file `token` in `HF_HOME`.
/// `HF_HUB_DISABLE_IMPLICIT_TOKEN` switches that off.
///
/// # Errors
/// When there is none.
pub(super) fn find() -> Result<Token> {
    find_in(&|name| std::env::var(name).ok(), &hf_hub::hf_home())
}

fn find_in(variable: &dyn Fn(&str) -> Option<String>, home: &Path) -> Result<Token> {
    const HELP: &str =
        "set HF_TOKEN to a token with write access (huggingface.co/settings/tokens), or log in with `hf auth login`";
    let refused = |message: &str| Error::Hub { message: message.into(), help: Some(HELP.into()) };
    if variable("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(|value| !value.is_empty()) {
        return Err(refused("an upload needs a token, and HF_HUB_DISABLE_IMPLICIT_TOKEN says not to use any"));
    }
    let of_file = |path: &Path| std::fs::read_to_string(path).ok().filter(|text| !text.trim().is_empty());
    let named = variable("HF_TOKEN_PATH").and_then(|path| of_file(Path::new(&path)));
    let found = variable("HF_TOKEN").filter(|text| !text.trim().is_empty()).or(named);
    let Some(text) = found.or_else(|| of_file(&home.join("token"))) else {
        return Err(refused("an upload needs a token of the Hub, and there is none"));
    };
    Token::new(&text).ok_or_else(|| refused("the Hub's token holds characters that no token has"))
}

/// What the Hub says of a token's owner (`whoami-v2`), held against what is to be written.
///
/// # Errors
/// When the token can only read, or may not write to this owner's repositories. What the Hub does not say is left for the Hub
/// to refuse.
pub(super) fn check(who: &Value, repo: &str, create_pr: bool, hub: &str) -> Result<()> {
    debug_assert!(is_repo(repo), "checked before");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let settings = format!("{hub}/settings/tokens");
    let refused = |message: String, help: String| Err(Error::Hub { message, help: Some(help) });
    let name = text(&who["name"]);
    let access = &who["auth"]["accessToken"];
    let role = text(&access["role"]);
    if role == "read" {
        return refused(
            format!("the token of {name} can only read"),
            format!("make one with the role `write` at {settings}, and set HF_TOKEN to it"),
        );
    }
    let owner = repo.split('/').next().unwrap_or_default();
    if role == "fineGrained" && access["fineGrained"].is_object() && !may_write(&access["fineGrained"], repo, create_pr)
    {
        return refused(
            format!("the token of {name} is a fine-grained one without write access to {owner}'s repositories"),
            format!("give it `Write access to contents/settings of all repos` of {owner} at {settings}"),
        );
    }
    // A pull request may be opened on anybody's repository.
    if create_pr || name.is_empty() || name.eq_ignore_ascii_case(owner) {
        return Ok(());
    }
    let orgs = who["orgs"].as_array().map_or(&[][..], Vec::as_slice);
    match orgs.iter().find(|org| text(&org["name"]).eq_ignore_ascii_case(owner)) {
        Some(org) if org["roleInOrg"] == "read" => refused(
            format!("{name} may only read in the organisation {owner}"),
            format!("ask its owners for the role `write` or `contributor`, or upload to {name}/…"),
        ),
        Some(_) => Ok(()),
        // A token of an organisation, or one that lists none: let the Hub decide.
        None if !who["orgs"].is_array() || who["type"] == "org" => Ok(()),
        None => refused(
            format!("the token is that of {name}, who is not {owner} and no member of an organisation of that name"),
            format!("upload to {name}/…, or set HF_TOKEN to a token of {owner}"),
        ),
    }
}

fn may_write(grained: &Value, repo: &str, create_pr: bool) -> bool {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let writes = |permission: &Value| permission == "repo.write" || (create_pr && permission == "discussion.write");
    if list(&grained["global"]).iter().any(writes) {
        return true;
    }
    list(&grained["scoped"]).iter().any(|scope| {
        let entity = scope["entity"]["name"].as_str().unwrap_or_default();
        let owner = repo.split('/').next().unwrap_or_default();
        let fits = create_pr || entity.eq_ignore_ascii_case(owner) || entity.eq_ignore_ascii_case(repo);
        fits && list(&scope["permissions"]).iter().any(writes)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_token_is_found_as_hugging_face_finds_it() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("elsewhere");
        let find = |set: &[(&str, &str)]| {
            let set: Vec<(String, String)> = set.iter().map(|(a, b)| ((*a).into(), (*b).into())).collect();
            let variable = |name: &str| set.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
            find_in(&variable, home.path()).map(|token| token.secret().to_owned())
        };
        let none = find(&[("HF_TOKEN", " ")]).unwrap_err();
        assert!(none.to_string().contains("there is none") && none.help().unwrap().contains("HF_TOKEN"));
        std::fs::write(home.path().join("token"), "hf_cached\n").unwrap();
        std::fs::write(&file, "hf_file").unwrap();
        assert_eq!(find(&[]).unwrap(), "hf_cached");
        let path = file.to_str().unwrap();
        assert_eq!(find(&[("HF_TOKEN_PATH", path)]).unwrap(), "hf_file");
        assert_eq!(find(&[("HF_TOKEN_PATH", path), ("HF_TOKEN", "hf_set ")]).unwrap(), "hf_set");
        assert!(find(&[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"), ("HF_TOKEN", "hf_set")]).is_err());
        let wrong = find(&[("HF_TOKEN", "hf_a\u{7}b c")]).unwrap_err();
        assert!(!format!("{wrong}{:?}", wrong.help()).contains("hf_a"), "{wrong}");
    }

    #[test]
    fn a_token_is_never_shown() {
        let token = Token::new("hf_secret").unwrap();
        assert_eq!(format!("{token:?} {:?}", Some(&token)), "Token(…) Some(Token(…))");
        assert_eq!(token.redact("no hf_secret here"), "no … here");
        assert!(token.is_in(b"a hf_secret b") && !token.is_in(b"hf_secre"));
    }

    #[test]
    fn what_a_token_may_not_do_is_known_before() {
        let who = |auth: Value| json!({"type": "user", "name": "anna", "orgs": [{"name": "clinic", "roleInOrg": "write"}, {"name": "other", "roleInOrg": "read"}], "auth": {"accessToken": auth}});
        let grained = |entity: &str, permission: &str| {
            let scope = json!({"entity": {"type": "user", "name": entity}, "permissions": [permission]});
            who(json!({"role": "fineGrained", "fineGrained": {"global": [], "scoped": [scope]}}))
        };
        let told = |who: &Value, repo: &str, pr| {
            check(who, repo, pr, "https://hub")
                .map_err(|error| format!("{error}; {}", error.help().unwrap_or_default()))
        };
        let write = who(json!({"role": "write"}));
        for repo in ["anna/x", "Anna/x", "clinic/x"] {
            told(&write, repo, false).unwrap();
        }
        told(&write, "someone/x", true).unwrap();
        let message = told(&write, "someone/x", false).unwrap_err();
        assert!(message.contains("anna") && message.contains("no member"), "{message}");
        assert!(told(&write, "other/x", false).unwrap_err().contains("may only read"));
        let message = told(&who(json!({"role": "read"})), "anna/x", false).unwrap_err();
        assert!(message.contains("can only read") && message.contains("https://hub/settings/tokens"), "{message}");

        told(&grained("anna", "repo.write"), "anna/x", false).unwrap();
        told(&grained("anna/x", "repo.write"), "anna/x", false).unwrap();
        told(&grained("clinic", "repo.write"), "clinic/x", false).unwrap();
        told(&grained("anna", "discussion.write"), "anna/x", true).unwrap();
        for who in
            [grained("anna", "repo.content.read"), grained("clinic", "repo.write"), grained("anna/y", "repo.write")]
        {
            assert!(told(&who, "anna/x", false).unwrap_err().contains("fine-grained"));
        }
        // A Hub that says less.
        for who in [json!({"name": "anna"}), json!({}), json!({"name": "bob", "auth": {"type": "oauth"}}), json!([1])] {
            told(&who, "anna/x", false).unwrap();
        }
    }
}
