//! Names of repositories as people copy them: addresses of a page or a file on the Hub, `hf://`, a slash at the end.

use super::Kind;
use crate::error::{Error, Result};

/// A repository as an address names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    /// `org/name`, or `name` for an old dataset; with `@revision` where the address has one.
    pub id: String,
    /// The file that the address names.
    pub file: Option<String>,
}

/// What an address names; `None` for what is no address of the Hub. `endpoint` is another Hub's.
pub(super) fn read(kind: Kind, text: &str, endpoint: Option<&str>) -> Option<Address> {
    let text = text.trim();
    let rest = strip_hub(text, endpoint)?;
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let mut parts: Vec<&str> = rest.split('/').filter(|part| !part.is_empty()).collect();
    match (kind, parts.first().copied()) {
        (Kind::Dataset, Some("datasets")) | (Kind::Model, Some("models")) => drop(parts.remove(0)),
        // Another kind of repository.
        (Kind::Model, Some("datasets" | "spaces")) | (Kind::Dataset, Some("spaces")) => return None,
        _ => {}
    }
    let (id, more) = parts.split_at_checked(2)?;
    let (id, at) = match id[1].split_once('@') {
        Some((name, revision)) => (format!("{}/{name}", id[0]), Some(revision.to_owned())),
        None => (id.join("/"), None),
    };
    let (revision, file) = match more {
        ["tree", revision, ..] => (Some((*revision).to_owned()), None),
        ["blob" | "resolve" | "raw", revision, file @ ..] if !file.is_empty() => {
            (Some((*revision).to_owned()), Some(file.join("/")))
        }
        // In `hf://` a file follows the name.
        file if text.starts_with("hf://") && !file.is_empty() => (at, Some(file.join("/"))),
        _ => (at, None),
    };
    let revision = revision.filter(|revision| revision != "main").map(|revision| format!("@{revision}"));
    Some(Address { id: id + &revision.unwrap_or_default(), file })
}

/// Refuses an address whose path goes up: it would name a folder of this machine, or another repository than it seems to. And
/// one of a folder of a repository, or of a dataset's file, for the repository is taken whole.
///
/// # Errors
/// Names the part.
pub(super) fn check(text: &str, endpoint: Option<&str>) -> Result<()> {
    let Some(rest) = strip_hub(text.trim(), endpoint) else { return Ok(()) };
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let is_up = |part: &&str| {
        let part = part.to_lowercase().replace("%2e", ".");
        part == "." || part == ".." || part.starts_with("..@")
    };
    let Some(up) = rest.split(['/', '\\']).find(is_up) else { return check_whole(text, rest) };
    Err(Error::invalid(format!("`{text}` is not the address of a repository: it has the part `{up}`"))
        .with_help("write the address as the Hub's page has it, or the id alone: `org/name`"))
}

/// Refuses an address that names less than a repository, but for a model's file. `rest` follows the Hub's name.
fn check_whole(text: &str, rest: &str) -> Result<()> {
    let parts: Vec<&str> = rest.split('/').filter(|part| !part.is_empty()).collect();
    let (is_dataset, parts) = match &parts[..] {
        ["datasets", parts @ ..] => (true, parts),
        ["models", parts @ ..] | parts => (false, parts),
    };
    let Some((id, more)) = parts.split_at_checked(2) else { return Ok(()) };
    let id = id.join("/");
    let part = match more {
        // Where most datasets have all of their files.
        ["tree", _, "data"] if is_dataset => return Ok(()),
        ["tree", _, folder @ ..] if !folder.is_empty() => format!("the folder `{}`", folder.join("/")),
        ["blob" | "resolve" | "raw", _, file @ ..] if is_dataset && !file.is_empty() => {
            format!("the file `{}`", file.join("/"))
        }
        ["viewer", "default", "train"] | ["viewer", "default"] | ["viewer"] => return Ok(()),
        ["viewer", subset] if is_dataset => format!("the subset `{subset}`"),
        ["viewer", subset, split, ..] if is_dataset => format!("the subset `{subset}` and the split `{split}`"),
        file if is_dataset && text.starts_with("hf://") && !file.is_empty() => format!("the file `{}`", file.join("/")),
        _ => return Ok(()),
    };
    let help = if is_dataset {
        format!(
            "choose the rows by keys: `{{hub: {id}, subset: …, split: …}}`; or download the files, and give their path"
        )
    } else {
        format!("write the repository, `{id}`; or download the folder, and give its path")
    };
    Err(Error::invalid(format!("`{text}` is the address of {part}, and only whole repositories are read"))
        .with_help(help))
}

/// What follows the Hub's name.
fn strip_hub<'a>(text: &'a str, endpoint: Option<&str>) -> Option<&'a str> {
    if let Some(rest) = text.strip_prefix("hf://") {
        return Some(rest);
    }
    let own = endpoint.and_then(|endpoint| text.strip_prefix(endpoint.trim_end_matches('/')));
    if let Some(rest) = own.and_then(|rest| rest.strip_prefix('/')) {
        return Some(rest);
    }
    let bare = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
    let bare = bare.strip_prefix("www.").unwrap_or(bare);
    ["huggingface.co/", "hf.co/"].iter().find_map(|host| bare.strip_prefix(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_and_files_name_their_repository() {
        let read = |kind, text: &str| {
            read(kind, text, Some("https://mirror.example/hub/")).map(|address| (address.id, address.file))
        };
        let model = |text: &str| read(Kind::Model, text);
        let id = |id: &str| Some((id.to_owned(), None));
        for text in [
            "https://huggingface.co/org/name",
            "https://huggingface.co/org/name/",
            "http://www.huggingface.co/org/name/tree/main",
            "huggingface.co/org/name?library=transformers",
            "https://huggingface.co/org/name#usage",
            "https://huggingface.co/org/name/discussions/3",
            "hf.co/org/name",
            "hf://org/name",
            "hf://models/org/name",
            "https://mirror.example/hub/org/name",
        ] {
            assert_eq!(model(text), id("org/name"), "{text}");
        }
        assert_eq!(model("https://huggingface.co/org/name/tree/v1"), id("org/name@v1"));
        assert_eq!(model("hf://org/name@v1"), id("org/name@v1"));
        let file = Some(("org/name".to_owned(), Some("q/x.gguf".to_owned())));
        assert_eq!(model("https://huggingface.co/org/name/blob/main/q/x.gguf"), file);
        assert_eq!(model("https://huggingface.co/org/name/resolve/main/q/x.gguf?download=true"), file);
        for text in
            ["org/name", "https://example.org/org/name", "https://huggingface.co/datasets/a/b", "hf.co/org", "/x/y"]
        {
            assert_eq!(model(text), None, "{text}");
        }
        let dataset = |text: &str| read(Kind::Dataset, text);
        for text in [
            "https://huggingface.co/datasets/org/name/viewer/default/train",
            "hf://datasets/org/name",
            "huggingface.co/datasets/org/name/tree/main/data",
        ] {
            assert_eq!(dataset(text), id("org/name"), "{text}");
        }
    }

    #[test]
    fn an_address_of_a_part_is_refused() {
        for (text, part) in [
            ("https://huggingface.co/org/name/tree/main/sub", "the folder `sub`"),
            ("https://huggingface.co/datasets/org/name/tree/main/fr", "the folder `fr`"),
            ("https://huggingface.co/datasets/org/name/blob/main/fr/x.jsonl", "the file `fr/x.jsonl`"),
            ("https://huggingface.co/datasets/org/name/viewer/fr/train", "the subset `fr` and the split `train`"),
            ("hf://datasets/org/name/x.jsonl", "the file `x.jsonl`"),
        ] {
            let error = check(text, None).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        for text in [
            "https://huggingface.co/org/name/tree/v1",
            "https://huggingface.co/org/name/blob/main/x.gguf",
            "https://huggingface.co/org/name/discussions/3",
            "https://huggingface.co/datasets/org/name/viewer/default/train",
            "https://huggingface.co/datasets/org/name/tree/main/data",
        ] {
            check(text, None).unwrap();
        }
    }

    #[test]
    fn an_address_that_goes_up_is_refused() {
        for text in [
            "https://huggingface.co/../etc",
            "hf://org/..",
            "hf://org/..@v1",
            "hf://org/name/../../x.gguf",
            "https://huggingface.co/org/%2E%2e/name",
            "https://huggingface.co/org/name/resolve/main/./x.gguf",
        ] {
            let error = check(text, None).unwrap_err().to_string();
            assert!(error.contains(text) && error.contains("has the part"), "{error}");
        }
        for text in ["../models/x", "https://huggingface.co/org/name..v2", "https://huggingface.co/org/name?a=../b"] {
            check(text, None).unwrap();
        }
    }
}
