//! Tasks and groups by name: those that are built in, and those of YAML files.

use super::broken::Broken;
use super::config::{GroupConfig, GroupMetric, TaskConfig, from_value, version_of};
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The most bytes of a task's file.
const MOST_BYTES: u64 = 4 << 20;
/// How deep `include` may go.
const MOST_INCLUDES: usize = 16;

/// The medical subjects of MMLU that lm-eval's group `multimedqa` has, in its order.
const SUBJECTS: [&str; 6] = [
    "anatomy",
    "clinical_knowledge",
    "college_medicine",
    "medical_genetics",
    "professional_medicine",
    "college_biology",
];

/// Tasks and groups that can be named.
#[derive(Debug)]
pub struct Registry {
    entries: BTreeMap<String, Entry>,
    /// Files of folders that cannot be read, as far as no later file is of the same name.
    broken: Vec<Broken>,
}

#[derive(Debug, Clone)]
struct Entry {
    keys: Map<String, Value>,
    path: PathBuf,
}

/// Tasks in the order in which they were asked for, and the groups that they are in.
#[derive(Debug, Default)]
pub struct Selected {
    /// Each task once.
    pub tasks: Vec<TaskConfig>,
    /// Groups, those inside of others first.
    pub groups: Vec<SelectedGroup>,
}

/// A group of tasks.
#[derive(Debug, Clone, PartialEq)]
pub struct SelectedGroup {
    /// Its name.
    pub name: String,
    /// Its name in tables.
    pub alias: String,
    /// What it names: tasks and groups.
    pub children: Vec<String>,
    /// All tasks below it.
    pub tasks: Vec<String>,
    /// What is made of their metrics, and whether a task counts by its items.
    pub metrics: Vec<(String, bool)>,
    /// Its version.
    pub version: Value,
}

impl Registry {
    /// The tasks that are built in: `medqa_4options`, `medmcqa`, `pubmedqa`, `mmlu_SUBJECT` and `mmlu_SUBJECT_continuation` of six medical
    /// subjects, and the group `multimedqa`.
    pub fn built_in() -> Self {
        let mut registry = Self { entries: BTreeMap::new(), broken: Vec::new() };
        for keys in built_in() {
            let name = name_of(&keys).unwrap_or_default().to_owned();
            registry.entries.insert(name, Entry { keys, path: PathBuf::from("(built in)") });
        }
        registry
    }

    /// Takes the tasks of a YAML file, or of all below a folder. They take precedence over others of the same names. The names of
    /// those that were found. A file of a folder that cannot be read is an error when its task is asked for.
    ///
    /// # Errors
    /// When nothing is there, or the file is no task or group.
    pub fn include(&mut self, path: &Path) -> Result<Vec<String>> {
        let files = if path.is_dir() { yaml_files(path)? } else { vec![path.to_owned()] };
        let mut names = Vec::new();
        for file in files {
            let keys = match read(&file, 0) {
                Ok(keys) => keys,
                Err(error) if path.is_dir() => {
                    let bytes = crate::fs::read_within(&file, MOST_BYTES).unwrap_or_default();
                    self.broken.push(Broken::new(&file, &bytes, &error));
                    continue;
                }
                Err(error) => return Err(error),
            };
            let Some(name) = name_of(&keys).map(str::to_owned) else {
                if path.is_dir() {
                    continue;
                }
                return Err(Error::file(&file, "is neither a task nor a group: it has no key `task` or `group`"));
            };
            self.broken.retain(|broken| broken.name.as_ref() != Some(&name));
            names.push(name.clone());
            self.entries.insert(name, Entry { keys, path: file });
        }
        Ok(names)
    }

    /// The tasks of names: of tasks, groups, tags, patterns such as `mmlu_*`, and of YAML files.
    ///
    /// # Errors
    /// Lists the names that there are, and those that are near.
    pub fn select(&mut self, names: &[String]) -> Result<Selected> {
        let mut selected = Selected::default();
        for name in names {
            let is_file = Path::new(name).extension().is_some_and(|end| end == "yaml" || end == "yml");
            let found = if is_file { self.include(Path::new(name))? } else { self.matching(name)? };
            for name in found {
                self.add(&name, &Map::new(), &mut selected, 0)?;
            }
        }
        Ok(selected)
    }

    /// Why files of folders cannot be read of which it is not known what they name.
    pub fn nameless_files(&self) -> impl Iterator<Item = Error> {
        self.broken.iter().filter(|broken| broken.name.is_none()).map(Broken::error)
    }

    /// Names of all tasks and groups.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    fn matching(&self, name: &str) -> Result<Vec<String>> {
        if let Some(broken) = self.broken.iter().find(|broken| broken.is_called(name)) {
            return Err(broken.error());
        }
        if self.entries.contains_key(name) {
            return Ok(vec![name.to_owned()]);
        }
        let tagged = |entry: &Entry| match entry.keys.get("tag") {
            Some(Value::String(tag)) => tag == name,
            Some(Value::Array(tags)) => tags.iter().any(|tag| tag == name),
            _ => false,
        };
        let mut found: Vec<String> =
            self.entries.iter().filter(|(_, entry)| tagged(entry)).map(|(name, _)| name.clone()).collect();
        if found.is_empty()
            && name.contains(['*', '?', '['])
            && let Ok(glob) = globset::Glob::new(name)
        {
            let glob = glob.compile_matcher();
            let is_meant = |broken: &&Broken| broken.name.as_ref().is_some_and(|name| glob.is_match(name));
            if let Some(broken) = self.broken.iter().find(is_meant) {
                return Err(broken.error());
            }
            found = self.entries.keys().filter(|each| glob.is_match(each)).cloned().collect();
        }
        if !found.is_empty() {
            return Ok(found);
        }
        let mut near: Vec<(f64, &str)> = self.names().map(|each| (strsim::jaro_winkler(each, name), each)).collect();
        near.sort_by(|a, b| b.0.total_cmp(&a.0));
        let help = match near.first() {
            Some((similarity, near)) if *similarity > 0.85 => format!("did you mean `{near}`?"),
            _ => format!("There are {}.", self.names().collect::<Vec<_>>().join(", ")),
        };
        let broken: Vec<String> = self.broken.iter().take(3).map(|broken| broken.path.display().to_string()).collect();
        let broken = match self.broken.len() {
            0 => String::new(),
            1..=3 => format!("; these files cannot be read: {}", broken.join(", ")),
            files => format!("; {files} files cannot be read, among them {}", broken.join(", ")),
        };
        Err(Error::invalid(format!("there is no task `{name}`")).with_help(format!(
            "{help} A task of your own is a YAML file: name it, or its folder with `--include-path`{broken}"
        )))
    }

    /// Adds a task or a group; the names of the tasks that it comes to.
    fn add(
        &self,
        name: &str,
        overrides: &Map<String, Value>,
        selected: &mut Selected,
        depth: usize,
    ) -> Result<Vec<String>> {
        let Some(entry) = self.entries.get(name) else {
            return Err(Error::invalid(format!("there is no task `{name}`, which a group names")));
        };
        if depth > MOST_INCLUDES {
            return Err(Error::file(&entry.path, format!("the group `{name}` is in itself")));
        }
        if entry.keys.contains_key("group") {
            return self.add_group(entry, overrides, selected, depth);
        }
        let mut keys = entry.keys.clone();
        keys.extend(overrides.clone());
        let config = TaskConfig::from_keys(&keys, &entry.path)?;
        let name = config.task.clone();
        match selected.tasks.iter().find(|known| known.task == name) {
            None => selected.tasks.push(config),
            Some(known) if *known == config => {}
            Some(_) => {
                return Err(Error::invalid(format!(
                    "the task `{name}` is asked for twice, with different settings: a group replaces some of its keys"
                ))
                .with_help("evaluate the group and the task by two commands"));
            }
        }
        Ok(vec![name])
    }

    fn add_group(
        &self,
        entry: &Entry,
        overrides: &Map<String, Value>,
        selected: &mut Selected,
        depth: usize,
    ) -> Result<Vec<String>> {
        const KEYS: [&str; 5] = ["group", "group_alias", "task", "aggregate_metric_list", "metadata"];
        // What else a group's file has replaces keys of its tasks.
        let (mut own, mut of_tasks) = (Map::new(), Map::new());
        for (key, value) in &entry.keys {
            if KEYS.contains(&key.as_str()) {
                own.insert(key.clone(), value.clone());
            } else {
                of_tasks.insert(key.clone(), value.clone());
            }
        }
        of_tasks.extend(overrides.clone());
        let config: GroupConfig = from_value(Value::Object(own), &entry.path)?;
        let members = match &config.task {
            Value::Array(members) => members.clone(),
            one => vec![one.clone()],
        };
        let (mut children, mut tasks) = (Vec::new(), Vec::new());
        for member in &members {
            let (name, more) = member_of(member, &entry.path)?;
            let mut overrides = of_tasks.clone();
            overrides.extend(more);
            for name in self.matching(&name)? {
                children.push(name.clone());
                tasks.extend(self.add(&name, &overrides, selected, depth + 1)?);
            }
        }
        let metrics = group_metrics(&config, &entry.path)?;
        selected.groups.push(SelectedGroup {
            alias: config.group_alias.clone().unwrap_or_else(|| config.group.clone()),
            version: version_of(config.metadata.as_ref()).map_or_else(|| Value::from("N/A"), as_text),
            name: config.group,
            children,
            tasks: tasks.clone(),
            metrics,
        });
        Ok(tasks)
    }
}

fn as_text(version: Value) -> Value {
    match version {
        Value::String(text) => Value::String(text),
        other => Value::String(other.to_string()),
    }
}

fn member_of(member: &Value, path: &Path) -> Result<(String, Map<String, Value>)> {
    match member {
        Value::String(name) => Ok((name.clone(), Map::new())),
        Value::Object(keys) => match keys.get("task") {
            Some(Value::String(name)) => {
                let mut more = keys.clone();
                more.remove("task");
                Ok((name.clone(), more))
            }
            _ => Err(Error::file(path, "`task`: groups inside of a group are named, not written out")),
        },
        other => Err(Error::file(path, format!("`task`: {other} is no name of a task"))),
    }
}

fn group_metrics(config: &GroupConfig, path: &Path) -> Result<Vec<(String, bool)>> {
    let list = match config.aggregate_metric_list.clone() {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(one) => vec![one],
    };
    let mut metrics = Vec::new();
    for value in list {
        let metric: GroupMetric = from_value(value, path)?;
        if metric.aggregation.as_deref().is_some_and(|aggregation| aggregation != "mean") {
            return Err(Error::file(path, "`aggregate_metric_list`: the aggregation of a group is `mean`"));
        }
        if metric.filter_list.is_some() {
            return Err(Error::file(
                path,
                "`aggregate_metric_list`: `filter_list` is not built; all filters are taken",
            ));
        }
        metrics.push((metric.metric, metric.weight_by_size));
    }
    Ok(metrics)
}

fn name_of(keys: &Map<String, Value>) -> Option<&str> {
    keys.get("group").or_else(|| keys.get("task"))?.as_str()
}

fn yaml_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(Error::io("read", &folder))? {
            let path = entry.map_err(Error::io("read", &folder))?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "yaml") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// A file's keys, with those of the files that it includes.
fn read(path: &Path, depth: usize) -> Result<Map<String, Value>> {
    if depth > MOST_INCLUDES {
        return Err(Error::file(path, "`include` goes in a circle"));
    }
    let bytes = crate::fs::read_within(path, MOST_BYTES)?;
    let yaml: serde_yaml::Value =
        serde_yaml::from_slice(&bytes).map_err(|error| Error::file(path, format!("is not valid YAML: {error}")))?;
    let Value::Object(own) = plain(yaml, path)? else {
        return Err(Error::file(path, "is not a map of keys"));
    };
    let included = match own.get("include") {
        None => Vec::new(),
        Some(Value::String(file)) => vec![file.clone()],
        Some(Value::Array(files)) => files.iter().filter_map(|file| file.as_str().map(str::to_owned)).collect(),
        Some(other) => return Err(Error::file(path, format!("`include`: {other} names no file"))),
    };
    let mut keys = Map::new();
    for file in included {
        keys.extend(read(&path.parent().unwrap_or(Path::new("")).join(file), depth + 1)?);
    }
    keys.extend(own);
    keys.remove("include");
    Ok(keys)
}

/// YAML as JSON. Tags such as `!function` run Python code, and are refused.
fn plain(yaml: serde_yaml::Value, path: &Path) -> Result<Value> {
    use serde_yaml::Value as Yaml;
    Ok(match yaml {
        Yaml::Null => Value::Null,
        Yaml::Bool(bool) => Value::Bool(bool),
        Yaml::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => Value::from(whole),
            (None, Some(real)) => Value::from(real),
            (None, None) => Value::Null,
        },
        Yaml::String(text) => Value::String(text),
        Yaml::Sequence(items) => Value::Array(items.into_iter().map(|item| plain(item, path)).collect::<Result<_>>()?),
        Yaml::Mapping(map) => {
            let mut keys = Map::new();
            for (key, value) in map {
                let key = match key {
                    Yaml::String(key) => key,
                    other => plain(other, path)?.to_string(),
                };
                keys.insert(key, plain(value, path)?);
            }
            Value::Object(keys)
        }
        Yaml::Tagged(tagged) => {
            return Err(Error::file(path, format!("`{}` runs Python code, which is not done here", tagged.tag))
                .with_help("write a template (Jinja) in its place"));
        }
    })
}

/// Four options in letters, behind a question.
fn lettered(first: &str, options: [&str; 4]) -> String {
    let lines = ['A', 'B', 'C', 'D'].iter().zip(options).map(|(letter, option)| format!("{letter}. {{{{{option}}}}}"));
    format!("{first}\n{}\nAnswer:", lines.collect::<Vec<_>>().join("\n"))
}

fn keys(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(keys) => keys,
        _ => Map::new(),
    }
}

/// The built-in tasks, as lm-eval 0.4.13 defines them.
fn built_in() -> Vec<Map<String, Value>> {
    let letters = json!(["A", "B", "C", "D"]);
    let metrics = |names: &[&str]| {
        names
            .iter()
            .map(|name| json!({"metric": name, "aggregation": "mean", "higher_is_better": true}))
            .collect::<Value>()
    };
    let mut tasks = vec![
        json!({
            "task": "medqa_4options",
            "dataset_path": "GBaker/MedQA-USMLE-4-options-hf",
            "training_split": "train", "validation_split": "validation", "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": lettered("Question: {{sent1}}", ["ending0", "ending1", "ending2", "ending3"]),
            "doc_to_choice": letters, "doc_to_target": "label",
            "metric_list": metrics(&["acc", "acc_norm"]),
        }),
        json!({
            "task": "medmcqa",
            "dataset_path": "openlifescienceai/medmcqa",
            "training_split": "train", "validation_split": "validation", "test_split": "validation",
            "output_type": "multiple_choice",
            "doc_to_text": lettered("Question: {{question}}\nChoices:", ["opa", "opb", "opc", "opd"]),
            "doc_to_choice": letters, "doc_to_target": "cop",
            "should_decontaminate": true, "doc_to_decontamination_query": "{{question}}",
            "metric_list": metrics(&["acc", "acc_norm"]),
        }),
        json!({
            "task": "pubmedqa",
            "dataset_path": "bigbio/pubmed_qa", "dataset_name": "pubmed_qa_labeled_fold0_source",
            "training_split": "train", "validation_split": "validation", "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "Abstract: {{CONTEXTS | join('\\n')}}\nQuestion: {{QUESTION}}\nAnswer:",
            "doc_to_choice": ["yes", "no", "maybe"], "doc_to_target": "final_decision",
            "metric_list": metrics(&["acc"]),
            "metadata": {"version": 1.0},
        }),
    ];
    for subject in SUBJECTS {
        let words = subject.replace('_', " ");
        let of_mmlu = |suffix: &str| {
            json!({
                "task": format!("mmlu_{subject}{suffix}"),
                "dataset_path": "cais/mmlu", "dataset_name": subject,
                "test_split": "test", "fewshot_split": "dev", "fewshot_config": {"sampler": "first_n"},
                "output_type": "multiple_choice",
                "metadata": {"version": 1.0},
            })
        };
        let mut lettered_task = keys(of_mmlu(""));
        let options = ["choices[0]", "choices[1]", "choices[2]", "choices[3]"];
        lettered_task.extend(keys(json!({
            "task_alias": subject,
            "description": format!("The following are multiple choice questions (with answers) about {words}.\n\n"),
            "doc_to_text": lettered("{{question.strip()}}", options),
            "doc_to_choice": letters, "doc_to_target": "answer",
            "metric_list": metrics(&["acc"]),
        })));
        let mut continuation = keys(of_mmlu("_continuation"));
        continuation.extend(keys(json!({
            "description": format!("The following are questions (with answers) about {words}.\n\n"),
            "doc_to_text": "Question: {{question.strip()}}\nAnswer:",
            "doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}",
        })));
        tasks.extend([Value::Object(lettered_task), Value::Object(continuation)]);
    }
    let members = ["pubmedqa", "medmcqa", "medqa_4options"].iter().map(|name| json!(name));
    let of_mmlu =
        SUBJECTS.iter().map(|name| json!({"task": format!("mmlu_{name}"), "task_alias": format!("{name} (mmlu)")}));
    tasks.push(json!({
        "group": "multimedqa",
        "task": members.chain(of_mmlu).collect::<Vec<_>>(),
        "aggregate_metric_list": [{"metric": "acc", "aggregation": "mean", "weight_by_size": true}],
    }));
    tasks.into_iter().map(keys).collect()
}
