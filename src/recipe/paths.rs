//! Paths and names as people write them into a recipe: `~` and variables are expanded, addresses of the Hub become ids.

use crate::error::{Error, Result};
use crate::fs::{expand, unset};
use crate::hub;
use serde_yaml::Value;
use std::path::Path;

/// Expands what the recipe names. What exists under its name as it stands stays.
///
/// # Errors
/// For a variable that is not set.
pub(super) fn settle(root: &mut Value) -> Result<()> {
    each(root, &["output_dir"], &mut |text| path(text, "output_dir"))?;
    each(root, &["lora", "init_from"], &mut |text| path(text, "lora.init_from"))?;
    for (key, named) in [("chat_template", "data.chat_template"), ("cache", "data.cache")] {
        each(root, &["data", key], &mut |text| path(text, named))?;
    }
    if let Some(tasks) = root.get_mut("evaluation").and_then(|evaluation| evaluation.get_mut("tasks"))
        && let Some(names) = tasks.as_str().filter(|names| names.contains(','))
    {
        // As the command line has them.
        *tasks = names.split(',').map(|name| Value::from(name.trim())).collect::<Vec<_>>().into();
    }
    for (key, named) in [("tasks", "evaluation.tasks"), ("include_path", "evaluation.include_path")] {
        match root.get_mut("evaluation").and_then(|evaluation| evaluation.get_mut(key)) {
            Some(Value::Sequence(all)) => {
                for one in all {
                    each(one, &[], &mut |text| path(text, named))?;
                }
            }
            Some(one) => each(one, &[], &mut |text| path(text, named))?,
            None => {}
        }
    }
    for (key, named) in [("train", "data.train"), ("validation", "data.validation")] {
        let Some(sources) = root.get_mut("data").and_then(|data| data.get_mut(key)) else { continue };
        let all: Vec<&mut Value> = match sources {
            Value::Sequence(all) => all.iter_mut().collect(),
            one => vec![one],
        };
        for source in all {
            for keys in [&[][..], &["path"]] {
                each(source, keys, &mut |text| {
                    check_no_address(text).map_err(|error| at(named, &error))?;
                    path(text, named)
                })?;
            }
            each(source, &["hub"], &mut |text| {
                hub::check_address(text).map_err(|error| at(&format!("{named}.hub"), &error))?;
                Ok(hub::dataset_id(text))
            })?;
        }
    }
    base(root)
}

/// Refuses an address in place of a data file.
fn check_no_address(text: &str) -> Result<()> {
    if !text.contains("://") || Path::new(text).exists() {
        return Ok(());
    }
    let id = hub::dataset_id(text);
    Err(if id == text {
        Error::invalid("files are not fetched from addresses")
            .with_help("download it, and name the file; a dataset on the Hub is written `{hub: org/name}`")
    } else {
        Error::invalid("this is an address, and no file")
            .with_help(format!("a dataset on the Hub is written `{{hub: {id}}}`"))
    })
}

/// `base.model`, with the file that an address may name.
fn base(root: &mut Value) -> Result<()> {
    let Some(section) = root.get_mut("base") else { return Ok(()) };
    let Some(model) = section.get("model").and_then(Value::as_str) else { return Ok(()) };
    hub::check_address(model).map_err(|error| at("base.model", &error))?;
    let (id, file) = hub::model_id(&path(model, "base.model")?);
    if let (Some(file), Value::Mapping(map)) = (file, &mut *section) {
        map.entry("file".into()).or_insert_with(|| file.into());
    }
    each(section, &["model"], &mut |_| Ok(id.clone()))
}

/// Changes the text at a place, if there is one.
fn each(root: &mut Value, keys: &[&str], change: &mut dyn FnMut(&str) -> Result<String>) -> Result<()> {
    let mut value = root;
    for key in keys {
        match value.get_mut(*key) {
            Some(inner) => value = inner,
            None => return Ok(()),
        }
    }
    if let Value::String(text) = value {
        *text = change(text)?;
    }
    Ok(())
}

/// An error at a key of the recipe.
fn at(key: &str, error: &Error) -> Error {
    Error::invalid(format!("{key}: {error}")).with_help(error.help().unwrap_or_default())
}

fn path(text: &str, key: &str) -> Result<String> {
    if !(text.starts_with('~') || text.contains('$')) || Path::new(text).exists() {
        return Ok(text.to_owned());
    }
    let variable = |name: &str| std::env::var(name).ok();
    match unset(text, &variable) {
        Some(name) => Err(Error::invalid(format!("{key}: `{text}`: the variable {name} is not set"))
            .with_help(format!("set it before the command (`export {name}=…`), or write the path out"))),
        None => Ok(expand(text, &variable)),
    }
}

#[cfg(test)]
mod tests {
    use crate::recipe::Recipe;
    use std::path::Path;

    #[test]
    fn paths_are_expanded_wherever_one_is_written() {
        let home = std::env::var("HOME").unwrap();
        let text = "output_dir: ~/out\nbase: {model: https://huggingface.co/org/name/resolve/v1/x.gguf}\n\
                    data: {train: ['$HOME/a.jsonl', {path: '${HOME}/b.jsonl'}, {hub: 'hf://datasets/org/rows'}], validation: ~/c.jsonl}\n";
        let recipe = Recipe::parse(text, Path::new("x.yaml"), &[]).unwrap();
        assert_eq!(recipe.output_dir, Path::new(&home).join("out"));
        assert_eq!((recipe.base.model.as_str(), recipe.base.file.as_deref()), ("org/name@v1", Some("x.gguf")));
        let train: Vec<_> =
            recipe.data.train.0.iter().map(|source| source.path.clone().or(source.hub.clone()).unwrap()).collect();
        assert_eq!(train, [format!("{home}/a.jsonl"), format!("{home}/b.jsonl"), "org/rows".into()]);
        assert_eq!(recipe.data.validation.unwrap().0[0].path, Some(format!("{home}/c.jsonl")));
        let error = Recipe::parse(&text.replace("~/out", "$NOT_SET_HERE/out"), Path::new("x.yaml"), &[]).unwrap_err();
        assert!(
            error.to_string().contains("x.yaml:1:") && error.to_string().contains("NOT_SET_HERE is not set"),
            "{error}"
        );
        for (address, advice) in [
            ("https://huggingface.co/datasets/org/rows", "`{hub: org/rows}`"),
            ("https://example.org/rows.jsonl", "download it"),
        ] {
            let text = text.replace("$HOME/a.jsonl", address);
            let error = Recipe::parse(&text, Path::new("x.yaml"), &[]).unwrap_err();
            assert!(error.to_string().contains("data.train: "), "{error}");
            assert!(error.help().unwrap().contains(advice), "{error:?}");
        }
        for (place, id) in
            [("org/name/resolve/v1/x.gguf", "org/name/resolve/../x.gguf"), ("datasets/org/rows", "datasets/org/..")]
        {
            let error = Recipe::parse(&text.replace(place, id), Path::new("x.yaml"), &[]).unwrap_err().to_string();
            assert!(error.contains("has the part `..`") && error.contains("x.yaml:"), "{error}");
        }
    }
}
