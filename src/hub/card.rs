//! What the README of a dataset declares about its files: `configs` in the YAML between two `---` at its top.
//! It does not own matching the declared patterns with files.

use serde::Deserialize;
use serde_yaml::Value;
use std::io::Read;
use std::path::Path;

/// The most bytes of a README that are looked at.
const MOST_BYTES: u64 = 1 << 20;
/// The most patterns of one subset.
const MOST_PATTERNS: usize = 2000;

/// A subset as the README declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Declared {
    pub name: String,
    /// Whether it is the one to take where none is named.
    pub default: bool,
    /// The folder of its files.
    pub folder: Option<String>,
    /// Splits with the patterns of their files; `None` where file names tell the splits.
    pub splits: Option<Vec<(String, Vec<String>)>>,
}

#[derive(Deserialize)]
struct Card {
    configs: Option<Vec<Config>>,
}

#[derive(Deserialize)]
struct Config {
    #[serde(rename = "config_name")]
    name: Option<Value>,
    #[serde(default)]
    default: bool,
    data_dir: Option<String>,
    data_files: Option<Value>,
}

/// The subsets that a README declares; none where it declares nothing.
///
/// # Errors
/// What is wrong, where it cannot be read.
pub(super) fn declared(readme: &Path) -> Result<Vec<Declared>, String> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(readme).map_err(|error| error.to_string())?;
    file.take(MOST_BYTES).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&bytes);
    front_matter(&text).map_or_else(|| Ok(Vec::new()), parse)
}

/// The YAML between the first line, `---`, and the next such line.
pub(super) fn front_matter(text: &str) -> Option<&str> {
    let text = text.trim_start_matches('\u{feff}');
    let body = text.strip_prefix("---")?.trim_start_matches([' ', '\t', '\r']).strip_prefix('\n')?;
    let mut end = 0;
    for line in body.split_inclusive('\n') {
        if line.trim_end() == "---" {
            return Some(&body[..end]);
        }
        end += line.len();
    }
    None
}

fn parse(yaml: &str) -> Result<Vec<Declared>, String> {
    if yaml.trim().is_empty() {
        return Ok(Vec::new());
    }
    let card: Card = serde_yaml::from_str(yaml).map_err(|error| error.to_string())?;
    card.configs.into_iter().flatten().map(subset).collect()
}

fn subset(config: Config) -> Result<Declared, String> {
    let name = config.name.as_ref().map_or(Some("default".into()), text).ok_or("`config_name` must be text")?;
    let splits = match config.data_files {
        None | Some(Value::Null) => None,
        Some(value) => {
            let splits = splits(&value).ok_or_else(|| format!("`data_files` of `{name}` cannot be understood"))?;
            if splits.iter().map(|(_, paths)| paths.len()).sum::<usize>() > MOST_PATTERNS {
                return Err(format!("`data_files` of `{name}` has more than {MOST_PATTERNS} paths"));
            }
            Some(splits)
        }
    };
    Ok(Declared { name, default: config.default, folder: config.data_dir, splits })
}

/// `data_files`: a path, a list of paths, a list of `{split, path}`, or a map from split to paths.
fn splits(value: &Value) -> Option<Vec<(String, Vec<String>)>> {
    match value {
        Value::Mapping(map) => map.iter().map(|(split, value)| Some((text(split)?, paths(value)?))).collect(),
        Value::Sequence(list) if list.iter().any(Value::is_mapping) => {
            list.iter().map(|entry| Some((text(entry.get("split")?)?, paths(entry.get("path")?)?))).collect()
        }
        _ => Some(vec![("train".into(), paths(value)?)]),
    }
}

fn paths(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Sequence(list) => list.iter().map(text).collect(),
        _ => Some(vec![text(value)?]),
    }
}

/// A name; people write `2024` and `no` without quotes.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(on) => Some(on.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Declared>, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        declared(file.path())
    }

    #[test]
    fn every_way_to_write_data_files_is_read() {
        let yaml = "---\r\nlicense: mit\nconfigs:\n- config_name: a\n  default: true\n  data_files: x.csv\n\
                    - config_name: 2024\n  data_files: [x.csv, y.csv]\n\
                    - config_name: c\n  data_dir: c\n  data_files:\n  - split: train\n    path: t*\n  - split: test\n    path: [u, v]\n\
                    - config_name: d\n  data_files: {train: t, dev: [u]}\n- config_name: e\n  data_dir: e\n---\n# Text\n---\n";
        let subsets = read(yaml).unwrap();
        let names: Vec<_> = subsets.iter().map(|subset| (subset.name.as_str(), subset.default)).collect();
        assert_eq!(names, [("a", true), ("2024", false), ("c", false), ("d", false), ("e", false)]);
        let split = |name: &str, paths: &[&str]| (name.to_string(), paths.iter().map(|p| (*p).to_string()).collect());
        assert_eq!(subsets[0].splits, Some(vec![split("train", &["x.csv"])]));
        assert_eq!(subsets[1].splits, Some(vec![split("train", &["x.csv", "y.csv"])]));
        assert_eq!(subsets[2].splits, Some(vec![split("train", &["t*"]), split("test", &["u", "v"])]));
        assert_eq!(subsets[2].folder.as_deref(), Some("c"));
        assert_eq!(subsets[3].splits, Some(vec![split("train", &["t"]), split("dev", &["u"])]));
        assert_eq!(subsets[4].splits, None);
    }

    #[test]
    fn what_declares_nothing_declares_nothing() {
        for text in [
            "",
            "# Title\n",
            "---\nlicense: mit\n---\n",
            "---\n---\n",
            "---\nconfigs:\n---\n",
            "---\nconfigs:\n- config_name: a\n",
        ] {
            assert_eq!(read(text), Ok(Vec::new()), "{text:?}");
        }
    }

    #[test]
    fn a_hostile_card_is_refused() {
        assert!(read("---\nconfigs: 7\n---\n").is_err());
        assert!(read("---\nconfigs:\n- config_name: a\n  data_files:\n  - split: train\n---\n").is_err());
        let many = "x,".repeat(MOST_PATTERNS + 1);
        let message = read(&format!("---\nconfigs:\n- config_name: a\n  data_files: [{many}]\n---\n")).unwrap_err();
        assert!(message.contains("more than"), "{message}");
        let mut bomb = String::from("---\na0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let before = format!("*a{}, ", level - 1).repeat(9);
            bomb += format!("a{level}: &a{level} [{before}]\n").as_str();
        }
        bomb.push_str("configs:\n- config_name: a\n  data_files: *a11\n---\n");
        assert!(read(&bomb).is_err());
        assert!(read(&format!("---\nconfigs: {}\n---\n", "[".repeat(100_000))).is_err());
    }
}
